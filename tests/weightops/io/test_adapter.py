"""BASE+ADAPTER is what PEFT merges, within one rounding; what is no plain product is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file, save_file

import weightops as wo
from weightops.errors import WeightopsError
from weightops.guard.compose import compose_guard
from weightops.io.adapter import read_adapter
from weightops.output.save import save

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's advice

LLAMA = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama, fp32."""
    return tiny.transformer(tmp_path_factory.mktemp("adapter") / "base", "llama", tied=False)


def adapter(base: Path, to: Path, dtype: torch.dtype = torch.float32, **config: Any) -> tuple[Path, tiny.Tensors]:
    """A random LoRA made and saved by PEFT on a model, and the weights that PEFT merges it into."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype), LoraConfig(task_type="CAUSAL_LM", **config)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
                parameter.normal_(0, 0.1)
    model.save_pretrained(to)
    return to, {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}


def assert_close_to_peft(base: Path, adapter_: Path, merged: tiny.Tensors, changed: set[str]) -> None:
    """Every tensor equals PEFT's within a rounding of its operands; what PEFT leaves alone is left alone to the byte."""
    model, before, moved = wo.open(f"{base}+{adapter_}"), wo.open(base), set()
    for name in model.names:
        mine, start = model.tensor(name), before.tensor(name)
        theirs = merged[name].to(mine.dtype)
        size = (theirs.double() - start.double()).abs().max() + start.double().abs()
        far = (mine.double() - theirs.double()).abs() > 2 * torch.finfo(mine.dtype).eps * size
        assert not far.any(), (name, mine[far], theirs[far])
        if tiny.same_bytes(theirs, start):
            assert tiny.same_bytes(mine, start), name
        else:
            moved |= {part for part in changed if part in name} or {name}
    assert moved == changed


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"r": 4, "lora_alpha": 8, "target_modules": LLAMA}, set(LLAMA)),
        ({"r": 4, "lora_alpha": 12, "target_modules": LLAMA, "use_rslora": True}, set(LLAMA)),
        (
            {
                "r": 2,
                "target_modules": LLAMA,
                "alpha_pattern": {"q_proj": 32, r"layers\.1\.self_attn\.v_proj": 1},
                "rank_pattern": {"down_proj": 5},
            },
            set(LLAMA),
        ),
        ({"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}, {"embed_tokens", "lm_head", "q_proj"}),
        ({"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}, {"q_proj", "lm_head", "norm"}),
        (
            {"r": 2, "target_modules": ["v_proj"], "layers_to_transform": [1], "lora_alpha": 0.5},
            {"layers.1.self_attn.v_proj"},
        ),
        ({"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"}, {"q_proj"}),
    ],
    ids=["plain", "rslora", "patterns", "embedding", "modules_to_save", "one layer", "gaussian"],
)  # fmt: skip
def test_a_lora_is_what_peft_merges(config, changed, base, tmp_path):
    folder, merged = adapter(base, tmp_path / "lora", **config)
    assert_close_to_peft(base, folder, merged, changed)


def test_a_lora_on_a_tied_embedding_is_what_peft_merges(tmp_path):
    tied = tiny.transformer(tmp_path / "tied", "qwen3", tied=True)
    folder, merged = adapter(tied, tmp_path / "lora", r=2, target_modules=["embed_tokens", "o_proj"])
    assert_close_to_peft(tied, folder, merged, {"embed_tokens", "o_proj"})


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, whose Conv1D layers store their weights transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=2, n_head=2)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["c_attn", "wte"]], ids=["conv1d", "and embedding"])
def test_a_lora_on_transposed_weights_is_what_peft_merges(targets, gpt2, tmp_path):
    folder, merged = adapter(gpt2, tmp_path / "lora", r=2, target_modules=targets, fan_in_fan_out=True)
    named = {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in merged.items()} | merged
    assert_close_to_peft(gpt2, folder, named, set(targets))


def test_a_bias_that_was_trained_is_replaced(gpt2, tmp_path):
    folder, merged = adapter(
        gpt2, tmp_path / "lora", r=2, target_modules=["c_attn"], fan_in_fan_out=True, bias="lora_only"
    )
    assert_close_to_peft(gpt2, folder, merged, {"c_attn"})


def test_on_bf16_the_sum_is_rounded_once_where_peft_rounds_the_product_first(base, tmp_path):
    half = tiny.copy(base, tmp_path / "half")
    tiny.rewrite(half, tiny.cast(tiny.read(base), torch.bfloat16))
    folder, merged = adapter(half, tmp_path / "lora", torch.bfloat16, r=4, target_modules=LLAMA)
    assert_close_to_peft(half, folder, merged, set(LLAMA))
    factors = load_file(folder / "adapter_model.safetensors")
    at = "model.layers.0.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{at}.lora_{side}.weight"].float() for side in "AB")
    product = torch.zeros(b.shape[0], a.shape[1])
    for r in range(4):
        product += b[:, r : r + 1] * a[r : r + 1]
    whole = tiny.read(half)[f"{at}.weight"].float() + product * (8 / 4)
    assert tiny.same_bytes(wo.open(f"{half}+{folder}").tensor(f"{at}.weight"), whole.bfloat16())


def test_a_guard_that_is_base_plus_adapter_composes_like_the_merged_guard(base, tmp_path):
    folder, merged = adapter(base, tmp_path / "lora", r=4, target_modules=LLAMA)
    target = tiny.copy(base, tmp_path / "target")
    tiny.rewrite(target, tiny.perturbed(tiny.read(base), 2, 0.1))
    composition = compose_guard(wo.open(f"{base}+{folder}"), wo.open(base), wo.open(target), scale=1.5)
    save(composition.plan, composition.package, tmp_path / "out", progress=False)
    b, t, result = tiny.read(base), tiny.read(target), tiny.read(tmp_path / "out")
    for name, tensor in result.items():
        expected = t[name] if tiny.left_out(name) else tiny.composed(t[name], merged[name], b[name], 1.5)
        assert torch.allclose(tensor, expected, rtol=0, atol=2e-7), name
        assert tiny.same_bytes(tensor, t[name]) != any(part in name for part in LLAMA), name
    made = json.loads((tmp_path / "out/weightops.json").read_text())
    assert str(folder) in [source["name"] for source in made["sources"]]


def test_an_adapter_is_a_delta_that_scales_and_adds(base, tmp_path):
    folder, merged = adapter(base, tmp_path / "lora", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    start, delta = wo.open(base), wo.open_adapter(folder)
    half = start + 0.5 * delta
    for name in ("model.layers.0.self_attn.q_proj.weight", "lm_head.weight"):
        expected = start.tensor(name) + 0.5 * (merged[name] - start.tensor(name))
        assert torch.allclose(half.tensor(name), expected, atol=1e-6)
    assert tiny.same_bytes((start + delta - delta).tensor("lm_head.weight"), start.tensor("lm_head.weight"))
    assert delta.without("lm_head").names == {f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)}


def test_factors_kept_in_another_dtype_are_multiplied_in_fp32(base, tmp_path):
    folder, _ = adapter(base, tmp_path / "lora", r=4, target_modules=["q_proj"])
    file = folder / "adapter_model.safetensors"
    save_file(tiny.cast(load_file(file), torch.float16), file)
    factors = load_file(file)
    at = "model.layers.1.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{at}.lora_{side}.weight"].float() for side in "AB")
    expected = wo.open(base).tensor(f"{at}.weight") + 2 * (b @ a)
    assert torch.allclose(wo.open(f"{base}+{folder}").tensor(f"{at}.weight"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which also changes the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', which also changes the base"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is set"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_that_is_no_plain_product_is_refused(config, says, base, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], **config)
    )
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(WeightopsError, match=says) as caught:
        wo.open(f"{base}+{tmp_path / 'lora'}")
    assert "merge_and_unload" in str(caught.value)


def by_hand(folder: Path, tensors: tiny.Tensors, **config: Any) -> Path:
    """An adapter folder of any content."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({f"{Q}.lora_A.weight": torch.ones(2, 16)}, {}, "q_proj has only lora_A; the adapter is incomplete"),
        ({}, {}, "the adapter changes no tensor"),
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 16)},
            {"peft_type": "IA3"},
            "the adapter's type is 'IA3'; weightops supports only LORA",
        ),
    ],
)
def test_an_incomplete_or_foreign_adapter_is_refused(tensors, config, says, base, tmp_path):
    with pytest.raises(WeightopsError, match=says):
        wo.open(f"{base}+{by_hand(tmp_path / 'lora', tensors, **config)}")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(30, 2)},
            r"q_proj.weight: shape \(30, 16\) in .*adapter_model.safetensors, \(32, 16\) in the output",
        ),
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(32, 3)},
            r"q_proj: lora_A has shape \(2, 16\) and lora_B has shape \(32, 3\), so they are not two matrices of one rank",
        ),
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 16, 1), f"{Q}.lora_B.weight": torch.ones(32, 2, 1)},
            r"q_proj: lora_A has shape \(2, 16, 1\) and lora_B has shape \(32, 2, 1\), so they are not two matrices",
        ),
        (
            {"base_model.model.other.lora_A.weight": torch.ones(2, 16), "base_model.model.other.lora_B.weight": torch.ones(32, 2)},
            "changes other.weight, which .*base does not have; this adapter is for another base",
        ),
    ],
    ids=["shape", "rank", "3-D", "name"],
)  # fmt: skip
def test_an_adapter_for_another_base_is_refused_in_the_plan(tensors, says, base, tmp_path):
    with pytest.raises(WeightopsError, match=says):
        wo.open(f"{base}+{by_hand(tmp_path / 'lora', tensors)}").plan().check()


def rename_base(folder: Path, **changed: object) -> Path:
    """The adapter with other keys in its configuration; None leaves a key out."""
    config = json.loads((folder / "adapter_config.json").read_text()) | changed
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def test_an_adapter_alone_goes_on_the_base_that_its_own_configuration_names(base, tmp_path, monkeypatch):
    folder, _ = adapter(base, tmp_path / "lora", r=2, target_modules=["q_proj"])
    rename_base(folder, base_model_name_or_path=str(base))
    alone, both = wo.open(folder), wo.open(f"{base}+{folder}")
    assert alone.spec == both.spec == f"{base}+{folder}"
    assert (alone - both).names == frozenset()
    from weightops.algebra import opening
    from weightops.io.gguf import ALIASES, Alias

    monkeypatch.setitem(ALIASES, "tiny-model", Alias("tiny", "t.gguf", package="tiny", hub="org/tiny"))
    for named in ("tiny-model", "org/tiny"):  # the hub's name of an alias means the weights that are here
        assert opening.base_of_adapter(rename_base(folder, base_model_name_or_path=named), "x") == "tiny-model"
    rename_base(folder, base_model_name_or_path="org/other", revision="v1")
    assert opening.base_of_adapter(folder, "x") == "org/other@v1"


@pytest.mark.parametrize("name", [None, "", 3, "/no/such/folder", "a b", "\0", "../gone"])
def test_an_adapter_without_a_base_that_can_be_found_says_how_to_name_it(name, base, tmp_path):
    folder, _ = adapter(base, tmp_path / "lora", r=2, target_modules=["q_proj"])
    with pytest.raises(WeightopsError, match=rf"a LoRA adapter, not a model, and its .*write BASE\+{folder}"):
        wo.open(rename_base(folder, base_model_name_or_path=name))


def test_the_base_of_an_adapter_is_no_adapter(base, tmp_path):
    folder, _ = adapter(base, tmp_path / "lora", r=2, target_modules=["q_proj"])
    with pytest.raises(WeightopsError, match="is an adapter too; name a model"):
        wo.open(rename_base(folder, base_model_name_or_path=str(folder)))


def test_after_the_plus_stands_an_adapter(base, tmp_path):
    folder, _ = adapter(base, tmp_path / "lora", r=2, target_modules=["q_proj"])
    with pytest.raises(WeightopsError, match="name a PEFT adapter or a sparse delta"):
        wo.open(f"{base}+{base}")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightopsError, match="adapter_model.safetensors is missing"):
        wo.open(f"{base}+{folder}")


FACTORS = {f"{Q}.lora_A.weight": torch.ones(2, 16), f"{Q}.lora_B.weight": torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern must map patterns to numbers"),
        ({"alpha_pattern": {"q_proj": "2"}}, "an alpha is 2; lora_alpha and alpha_pattern must contain plain numbers"),
        ({"alpha_pattern": {"q_proj": None}}, "an alpha is None"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern '.' cannot be used"),
        ({"alpha_pattern": {"(?=q)q_proj": 2}}, "RE2, which has no look-ahead"),
        ({"alpha_pattern": {"x" * 501: 2}}, "501 characters, the limit is 500"),
        ({"alpha_pattern": {f"{n}+": 2 for n in range(1001)}}, "alpha_pattern has 1001 patterns, the limit is 1000"),
        ({"lora_alpha": "16"}, "an alpha is 16"),
        ({"lora_alpha": True}, "an alpha is True"),
        ({"lora_alpha": 10**90}, "an alpha is 1000"),
        ({"lora_alpha": float("nan")}, "an alpha is nan"),
        ({"init_lora_weights": ["pissa"], "peft_type": ["LORA"]}, "the adapter's type is"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_settings_of_the_wrong_kind_are_refused_with_the_file(config, says, tmp_path):
    with pytest.raises(WeightopsError, match=says) as caught:
        read_adapter(by_hand(tmp_path / "lora", FACTORS, **config), "lora")
    assert str(tmp_path / "lora") in str(caught.value)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*a){20}b", "(a*)*(a*)*c"])
def test_a_pattern_that_backtracks_for_ever_ends_at_once(pattern, tmp_path):
    factors = {f"{'a' * 5000}.lora_A.weight": torch.ones(2, 16), f"{'a' * 5000}.lora_B.weight": torch.ones(32, 2)}
    begin = time.process_time()
    read_adapter(by_hand(tmp_path / "lora", factors, alpha_pattern={pattern: 4}), "lora")
    assert time.process_time() - begin < 10


def test_many_patterns_times_many_long_names_are_refused_before_they_are_matched(tmp_path):
    names = [f"{'ab' * 2000}{n}" for n in range(100)]
    factors = {f"{n}.lora_{s}.weight": torch.ones(1, 1) for n in names for s in "AB"}
    patterns = {f"(a|b)*a(a|b){{200}}{n}": 4 for n in range(100)}
    with pytest.raises(WeightopsError, match="alpha_pattern is too large for this many modules"):
        read_adapter(by_hand(tmp_path / "lora", factors, alpha_pattern=patterns), "lora")


@pytest.mark.parametrize("pattern", ["q_proj", "self_attn.q_proj", r".*\.0\..*q_proj", "q_proj|v_proj", "proj", "x"])
def test_patterns_mean_what_they_mean_in_peft(pattern, tmp_path):
    from peft.utils.other import get_pattern_key

    module = Q.removeprefix("base_model.model.")
    matches = get_pattern_key([pattern], module) == pattern
    opened = read_adapter(by_hand(tmp_path / "lora", FACTORS, alpha_pattern={pattern: 8}), "lora")
    assert opened.updates[f"{module}.weight"].scale == (4.0 if matches else 1.0)


def test_weights_that_are_a_link_out_of_the_adapter_are_refused(tmp_path):
    folder = by_hand(tmp_path / "lora", FACTORS)
    (folder / "adapter_model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightopsError, match="a link out of its folder"):
        read_adapter(folder, "lora")
