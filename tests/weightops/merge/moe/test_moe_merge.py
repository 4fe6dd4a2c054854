"""Mixtures of experts: equal to mergekit-moe's on the same files, loaded by transformers, resumed, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
import yaml
from merge_files import config_of, quiet

from weightops.errors import WeightopsError
from weightops.merge.moe.moe_file import parse_moe
from weightops.merge.moe.moe_merge import plan_moe
from weightops.output.provenance import verify

SHAPE = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
PROMPTS = [("hello user", "safe"), ("kill a process", "a python"), ("unsafe python : a", "hello")]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, list[Path]]:
    """Three models of each family, bf16, saved by transformers; Llama's file says nothing that its class assumes."""
    import transformers as tf

    classes = {
        "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, {}),
        "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config, {}),
        "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config, {"head_dim": 8}),
    }
    folder, made = tmp_path_factory.mktemp("dense"), {}
    for family, (model_class, config_class, more) in classes.items():
        made[family] = []
        for seed in range(3):
            torch.manual_seed(seed)
            model = model_class(config_class(**{**SHAPE, **more})).to(torch.bfloat16)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape))
            to = folder / family / str(seed)
            model.save_pretrained(to)
            tiny.tokenizer(to, [*tiny.WORDS, "x", "y", "z"])
            made[family].append(to)
        if family == "llama":
            for to in made[family]:
                config = config_of(to)
                for key in ("rope_parameters", "rms_norm_eps", "num_key_value_heads", "head_dim"):
                    if key != "num_key_value_heads":
                        config.pop(key, None)
                (to / "config.json").write_text(json.dumps(config))
    return made


def file_of(models: list[Path], *, shared: bool | None = None, **keys) -> str:
    """A file: the first model is the base; ``shared``: one shared expert, with or without prompts."""
    base, *experts = models
    entries = [
        {"source_model": str(model), "positive_prompts": list(PROMPTS[n]), "negative_prompts": [PROMPTS[n - 1][0]] * n}
        for n, model in enumerate(experts)
    ]
    file = {"base_model": str(base), "experts": entries, **keys}
    if shared is not None:
        entry = {"source_model": str(base), "residual_scale": 0.5}
        file["shared_experts"] = [{**entry, "positive_prompts": list(PROMPTS[2])} if shared else entry]
    return yaml.safe_dump(file)


def made(text: str, out: Path, **options) -> Path:
    planned = plan_moe(parse_moe(text), **options)
    return planned.write(planned.prepared(out), progress=False, threads=2).folder


def theirs(text: str, out: Path) -> Path:
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    with quiet():
        build(MoEMergeConfig.model_validate(yaml.safe_load(text)), str(out), MergeOptions(), device="cpu")
    return out


def loaded(folder: Path):
    from transformers import AutoModelForCausalLM

    with quiet():
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert [report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [set()] * 3
    return model.eval()


CASES = [
    ("llama", None, {}, "mixtral"),
    ("qwen2", True, {}, "qwen2_moe"),
    ("llama", True, {"architecture": "qwen"}, "qwen2_moe"),
    ("qwen3", None, {}, "qwen3_moe"),
]


@pytest.mark.parametrize(("family", "shared", "keys", "model_type"), CASES)
def test_weights_are_mergekits_bit_for_bit_and_routers_up_to_rounding(
    models, family, shared, keys, model_type, tmp_path
):
    text = file_of(models[family], shared=shared, gate_mode="cheap_embed", **keys)
    out = made(text, tmp_path / "ours")
    mine, other = loaded(out), loaded(theirs(text, tmp_path / "theirs"))
    assert mine.config.model_type == model_type
    assert verify(out) == []
    expected = other.state_dict()
    assert mine.state_dict().keys() == expected.keys()
    for name, tensor in mine.state_dict().items():
        if ".gate.weight" in name or "_gate.weight" in name:
            assert torch.allclose(tensor.float(), expected[name].float(), atol=2**-8), name
        else:
            assert torch.equal(tensor, expected[name]), name
    ignored = {"dtype", "_name_or_path", "transformers_version", "layer_types", "head_dim", "architectures"}
    settings = [{k: v for k, v in m.config.to_dict().items() if k not in ignored} for m in (mine, other)]
    assert {k: (settings[0].get(k), v) for k, v in settings[1].items() if settings[0].get(k) != v} == {}
    ids = torch.tensor([[1, 3, 5, 7, 9]])
    with torch.no_grad():
        logits = mine(ids).logits
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("shared", [None, False])
def test_deepseek_tensors_are_mergekits_under_the_same_names(models, shared, tmp_path):
    """transformers reads this architecture only with code from the hub, so the files are compared."""
    text = file_of(models["llama"], shared=shared, gate_mode="cheap_embed", architecture="deepseek")
    mine, other = made(text, tmp_path / "ours"), theirs(text, tmp_path / "theirs")
    tensors, expected = tiny.read(mine), tiny.read(other)
    assert tensors.keys() == expected.keys()
    gates = {name for name in tensors if name.endswith("mlp.gate.weight")}
    assert all(tiny.same_bytes(tensors[name], expected[name]) for name in tensors.keys() - gates)
    assert all(torch.allclose(tensors[name].float(), expected[name].float(), atol=2**-8) for name in gates)
    config, wanted = config_of(mine), config_of(other)
    keys = ("auto_map", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
            "first_k_dense_replace", "rms_norm_eps", "model_type", "scoring_func", "norm_topk_prob")  # fmt: skip
    assert {key: config[key] for key in keys} == {key: wanted[key] for key in keys}
    assert config["rope_theta"] == wanted["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_mixture_of_one_model_computes_what_that_model_computes(models, family, tmp_path):
    """Also where the model's file leaves to its class what the output's class assumes otherwise."""
    base = models[family][0]
    text = file_of([base] * 3, gate_mode="random", dtype="float32")
    mixture, dense = loaded(made(text, tmp_path / "out")).float(), loaded(base).float()
    ids = torch.tensor([[1, 3, 5, 7, 9, 4]])
    with torch.no_grad():
        assert torch.allclose(mixture(ids).logits, dense(ids).logits, atol=1e-5)


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg"])
def test_rows_from_hidden_states_are_the_directions_of_the_whole_models_states(models, mode, tmp_path):
    """Worked out with transformers on each prompt alone, in fp32; mergekit runs bf16 and pads prompts of one expert."""
    from transformers import AutoTokenizer

    base, *experts = models["llama"]
    prompts = [(["hello user a", "x"], ["z z"]), (["kill a process", "python"], [])]
    entries = [{"source_model": str(e), "positive_prompts": p, "negative_prompts": n}
               for e, (p, n) in zip(experts, prompts, strict=True)]  # fmt: skip
    text = yaml.safe_dump({"base_model": str(base), "gate_mode": mode, "experts": entries, "dtype": "float32"})
    tensors = tiny.read(made(text, tmp_path / "out"))
    model, tokenizer = loaded(base).float(), AutoTokenizer.from_pretrained(base)

    def state(texts: list[str], layer: int) -> torch.Tensor:
        rows = []
        for written in texts:
            ids = tokenizer("<s>" + written, return_tensors="pt", add_special_tokens=False)
            hidden = model(**ids, output_hidden_states=True).hidden_states[layer][0]
            rows.append(hidden.mean(0) if mode == "hidden_avg" else hidden[-1])
        return torch.stack(rows).mean(0) if rows else torch.zeros(16)

    with torch.no_grad():
        for layer in range(2):
            rows = [state(p, layer) - state(n, layer) for p, n in prompts]
            expected = torch.stack([row / row.norm() for row in rows])
            router = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
            assert torch.allclose(router, expected, atol=1e-5), layer


def test_rows_from_hidden_states_are_mergekits_up_to_its_bf16(models, tmp_path):
    base, *experts = models["llama"]
    entries = [
        {"source_model": str(e), "positive_prompts": [p]}
        for e, p in zip(experts, ["hello user a", "z x y"], strict=True)
    ]
    text = yaml.safe_dump({"base_model": str(base), "gate_mode": "hidden", "experts": entries})
    mine, other = loaded(made(text, tmp_path / "ours")), loaded(theirs(text, tmp_path / "theirs"))
    for layer in range(2):
        rows = [m.model.layers[layer].mlp.gate.weight.float() for m in (mine, other)]
        assert torch.nn.functional.cosine_similarity(*rows, dim=-1).min() > 0.999


@pytest.mark.parametrize(("mode", "spread"), [("random", 1.0), ("uniform_random", (1 / 16 / 3) ** 0.5)])
def test_random_routers_need_no_prompts_and_depend_on_the_seed_only(models, mode, spread, tmp_path):
    base, *experts = models["llama"]
    entries = [{"source_model": str(expert), "noise_scale": 0.5} for expert in experts]
    text = yaml.safe_dump({"base_model": str(base), "gate_mode": mode, "experts": entries, "dtype": "float32"})
    outs = [tiny.read(made(text, tmp_path / str(n), seed=seed)) for n, seed in enumerate((0, 0, 1))]
    name = "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    gate = "model.layers.1.block_sparse_moe.gate.weight"
    for tensor in (name, gate):
        assert torch.equal(outs[0][tensor], outs[1][tensor])
        assert not torch.equal(outs[0][tensor], outs[2][tensor])
    assert abs(float(outs[0][gate].std()) / spread - 1) < 0.4
    source = tiny.read(experts[1])["model.layers.1.mlp.down_proj.weight"].float()
    assert abs(float((outs[0][name] - source).std()) / 0.5 - 1) < 0.15


def test_an_expert_with_an_adapter_and_a_residual_scale_is_the_adapted_model_scaled(models, tmp_path):
    base, expert, _ = models["llama"]
    name = "model.layers.1.mlp.down_proj.weight"
    adapter = tiny.lora(tmp_path / "adapter", tiny.read(expert), [name], seed=1)
    entries = [{"source_model": str(base)}, {"source_model": f"{expert}+{adapter}", "residual_scale": 0.25}]
    text = yaml.safe_dump({"base_model": str(base), "gate_mode": "random", "experts": entries, "dtype": "float32"})
    weight = tiny.read(made(text, tmp_path / "out"))["model.layers.1.block_sparse_moe.experts.1.w2.weight"]
    factors = tiny.read(adapter)
    a, b = (next(t for n, t in factors.items() if f"lora_{side}" in n) for side in "AB")
    assert torch.allclose(weight, 0.25 * (tiny.read(expert)[name].float() + b @ a), atol=1e-6)


def test_models_that_do_not_fit_are_refused_with_their_names(models, tmp_path):
    base, expert, _ = models["llama"]
    wide, deep = tiny.copy(expert, tmp_path / "wide"), tiny.copy(expert, tmp_path / "deep")
    tensors = tiny.read(expert)
    tiny.rewrite(wide, {n: torch.cat([t, t]) if "up_proj" in n or "gate_proj" in n
                        else torch.cat([t, t], 1) if "down_proj" in n else t for n, t in tensors.items()})  # fmt: skip
    tiny.rewrite(deep, {n: t for n, t in tensors.items() if "layers.1." not in n})
    text = file_of([base, expert, wide], gate_mode="random")
    with pytest.raises(WeightopsError, match=r"wide: .*gate_proj.* has shape \(64, 16\).* need \(32, 16\)"):
        plan_moe(parse_moe(text))
    with pytest.raises(WeightopsError, match="deep: has 1 layers, the base has 2"):
        plan_moe(parse_moe(file_of([base, expert, deep], gate_mode="random")))
    with pytest.raises(WeightopsError, match="Mixtral is made of models of one type"):
        plan_moe(parse_moe(file_of([base, expert, models["qwen3"][1]], gate_mode="random")))
    with pytest.raises(WeightopsError, match="Mixtral has no place for .*q_proj.bias"):
        biased = tiny.copy(base, tmp_path / "biased")
        tiny.rewrite(biased, {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(16)})
        plan_moe(parse_moe(file_of([biased, expert, expert], gate_mode="random")))


EXPERTS = "experts:\n  - {source_model: a, positive_prompts: [x]}\n  - {source_model: b, positive_prompts: [y]}\n"
BAD = [
    ("experts: []\nbase_model: a\n", "1: experts needs a list with at least one entry"),
    (EXPERTS, "1: base_model is missing"),
    ("base_model: a\nexperts:\n  - {source_model: a}\n  - {source_model: b, positive_prompts: [y]}\n",
     "3: no positive_prompts for a, which gate_mode hidden needs"),
    ("base_model: a\ngate_mode: hiden\n" + EXPERTS, "2: unknown gate_mode 'hiden' (did you mean 'hidden'?)"),
    ("base_model: a\nexperts_per_token: 3\n" + EXPERTS, "2: each token goes to 3 experts, but there are 2"),
    ("base_model: a\nexperts_per_token: 0\n" + EXPERTS, "2: experts_per_token must be at least 1"),
    ("base_model: a\n" + EXPERTS.replace("[y]", "[x]"), "2: all experts have the same prompts"),
    ("base_model: a\n" + EXPERTS.replace("[y]", "[3]"), "4: 3 is not text"),
    ("merge_method: ties\nmodels: []\n", "1: this is a merge file"),
    ("base_model: a\n---\nbase_model: b\n", "1: 2 documents"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), BAD)
def test_a_bad_file_is_refused_with_the_line(text, problem):
    with pytest.raises(WeightopsError) as refused:
        parse_moe(text, "moe.yml")
    assert any(line.startswith(f"moe.yml:{problem}") for line in refused.value.problems), refused.value.problems


def test_keys_without_an_effect_and_unknown_architectures_are_named(models):
    base, *_ = models["llama"]
    text = file_of([base, base, base], gate_mode="random", expert_per_token=1)
    planned = plan_moe(parse_moe(text, "moe.yml"))
    assert any("'expert_per_token' is unknown and has no effect (did you mean" in note for note in planned.plan.notes)
    assert any("all experts are the same model" in note for note in planned.plan.notes)
    with pytest.raises(WeightopsError, match="unknown architecture 'mixtrel' .did you mean 'Mixtral'"):
        plan_moe(parse_moe(file_of([base, base, base], gate_mode="random", architecture="mixtrel")))
