"""Adapters merged from their factors are what merging their products gives; what cannot be merged is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_adapters
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_adapters import assert_same_products, peft_adapter, products

import weightops as wo
from weightops.adapters.core_space import CoreSpace, compressed, core_space, inner_products
from weightops.adapters.factors import Factors, split
from weightops.errors import WeightopsError
from weightops.ops import methods
from weightops.output.provenance import verify

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's advice

LLAMA = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": LLAMA},
    "rslora": {"r": 4, "lora_alpha": 12, "target_modules": LLAMA, "use_rslora": True},
    "patterns": {
        "r": 2,
        "target_modules": LLAMA,
        "alpha_pattern": {"q_proj": 32, r"layers\.1\.self_attn\.v_proj": 1},
        "rank_pattern": {"down_proj": 5},
    },
    "embeddings": {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "bias": {"r": 2, "target_modules": ["q_proj"], "bias": "all", "init_lora_weights": False},
    "whole": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}
#: Methods that merge task vectors, or sum them, without the base's weights.
USABLE = [m for m in methods() if "base" not in m.fills and (m.takes == "deltas" or m.affine) and m.models[0] == 1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama, fp32."""
    return tiny.transformer(tmp_path_factory.mktemp("adapters") / "base", "llama", tied=False)


@pytest.fixture(scope="module")
def make(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Adapters of the base, each made once."""
    place, known = tmp_path_factory.mktemp("made"), {}

    def made(kind: str = "plain", seed: int = 1, **more: Any) -> Path:
        key = f"{kind}-{seed}-{len(known)}" if more else f"{kind}-{seed}"
        if key not in known:
            known[key] = peft_adapter(base, place / key, seed, **{**KINDS[kind], **more})
        return known[key]

    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["core", "product", "factors"])
def test_one_adapter_at_weight_one_is_that_adapters_model(kind, space, base, make, tmp_path):
    alone = make(kind)
    out = wo.merge_adapters([alone], space=space, weights=[1.0]).save(tmp_path / "out", progress=False)
    assert_same_products(products(alone), products(out))
    torch.testing.assert_close(tiny_adapters.logits(base, out), tiny_adapters.logits(base, alone), rtol=1e-5, atol=1e-6)
    assert verify(out) == []


def test_conv1d_layers_keep_their_orientation(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=24, n_positions=32)).save_pretrained(
        tmp_path / "gpt2"
    )
    config = {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    alone = peft_adapter(tmp_path / "gpt2", tmp_path / "alone", **config)
    out = wo.merge_adapters([alone], weights=[1.0]).save(tmp_path / "out", progress=False)
    same = tiny_adapters.logits(tmp_path / "gpt2", out) - tiny_adapters.logits(tmp_path / "gpt2", alone)
    assert same.abs().max() < 1e-6


@pytest.mark.parametrize("space", ["core", "product"])
def test_linear_is_the_weighted_mean_of_the_products_whatever_ranks_scales_and_targets(space, make, tmp_path):
    parts = [make("plain", 1), make("rslora", 2), make("patterns", 3), make("embeddings", 4)]
    weights = [0.5, 1.0, 2.0, 0.25]
    out = wo.merge_adapters(parts, space=space, weights=weights).save(tmp_path / "out", progress=False)
    wanted: dict[str, torch.Tensor] = {}
    for part, weight in zip(parts, weights, strict=True):
        for name, product in products(part).items():
            wanted[name] = wanted.get(name, 0) + weight / sum(weights) * product
    assert_same_products(wanted, products(out))


def updates(draw: st.DrawFn) -> list[Factors | None]:
    count, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    there = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ranks = [draw(st.integers(1, 5)) for _ in there]
    return [Factors(factor(rows, r), factor(r, columns)) if t else None for t, r in zip(there, ranks, strict=True)]


def dense(update: Factors | None, like: Factors) -> torch.Tensor:
    return torch.zeros_like(like.left @ like.right) if update is None else update.left @ update.right


def in_full(space: CoreSpace, core: torch.Tensor) -> torch.Tensor:
    """Core matrices as updates of the weight."""
    return space.left @ core @ (space.right @ torch.eye(core.shape[-1], dtype=core.dtype)).T


@given(st.integers(0, 2**32 - 1), st.floats(0, 7))
@settings(deadline=None)
def test_a_basis_is_orthonormal_however_dependent_the_factors_are(seed, digits):
    """From the Gram matrix where it can be, from QR where columns are nearly dependent; the same subspace."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(40, 6, generator=draw, dtype=torch.float64)
    vectors[:, 5] = vectors[:, 4] + 10**-digits * vectors[:, 5]
    space = core_space([Factors(vectors, torch.eye(6, dtype=torch.float64))])
    for basis in (space.left, space.right):
        columns = basis @ torch.eye(6, dtype=torch.float64)
        torch.testing.assert_close(columns.T @ columns, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(in_full(space, space.cores[0]), vectors, rtol=1e-12, atol=1e-12)


@given(st.composite(updates)())
@settings(deadline=None)
def test_core_space_loses_nothing_and_keeps_inner_products(parts):
    space, one = core_space(parts), next(part for part in parts if part is not None)
    whole = torch.stack([dense(part, one) for part in parts])
    torch.testing.assert_close(in_full(space, space.cores), whole, rtol=1e-9, atol=1e-9)
    gram = torch.einsum("aij,bij->ab", whole, whole)
    torch.testing.assert_close(inner_products(parts), gram, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.einsum("aij,bij->ab", space.cores, space.cores), gram, rtol=1e-9, atol=1e-9)


@given(st.composite(updates)(), st.integers(1, 4))
@settings(deadline=None)
def test_a_cut_sum_is_the_best_approximation_and_its_factors_are_balanced(parts, rank):
    space, one = core_space(parts), next(part for part in parts if part is not None)
    whole = sum(dense(part, one) for part in parts)
    cut = split(space.left, space.cores.sum(0), space.right, rank)
    s = torch.linalg.svdvals(whole)
    best = (s[rank:].square().sum()).sqrt()
    assert cut.rank <= rank
    assert (whole - cut.left @ cut.right).norm() <= best + 1e-8 * s[0]
    torch.testing.assert_close(cut.left.T @ cut.left, cut.right @ cut.right.T, rtol=1e-8, atol=1e-8)


@given(st.composite(updates)(), st.integers(1, 6), st.floats(0.01, 100))
@settings(deadline=None)
def test_compression_does_not_see_how_an_update_is_split_into_factors(parts, rank, factor):
    moved = [None if part is None else Factors(part.left * factor, part.right / factor) for part in parts]
    one, two = (compressed(core_space(each), rank) for each in (parts, moved))
    first, second = (in_full(each, each.cores) for each in (one, two))
    gaps = [torch.linalg.svdvals(core_space(parts).cores.transpose(0, 1).flatten(1)),
            torch.linalg.svdvals(core_space(parts).cores.flatten(0, 1))]  # fmt: skip
    for values in gaps:  # a subspace is only defined where the singular values at its edge differ
        if rank < len(values) and values[rank - 1] - values[rank] < 1e-3 * values[0]:
            return
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5 * float(first.abs().max() + 1))


def test_compress_then_merge_keeps_all_where_the_adapters_share_their_subspaces(make, tmp_path):
    alone, twice = make("plain", 1), tmp_path / "twice"
    tiny.copy(alone, twice)
    tiny_adapters.change_tensors(twice, lambda name, tensor: 3 * tensor if "lora_B" in name else tensor)
    out = wo.merge_adapters([alone, twice], rank=4).save(tmp_path / "out", progress=False)
    assert_same_products({name: 2 * product for name, product in products(alone).items()}, products(out))


@pytest.mark.parametrize("method", [m.name for m in USABLE if "one" not in m.breaks])
def test_every_method_of_task_vectors_gives_one_adapter_back(method, make, tmp_path):
    alone = make("plain")
    out = wo.merge_adapters([alone], method=method).save(tmp_path / "out", progress=False)
    assert_same_products(products(alone), products(out), within=1e-4)


@pytest.mark.parametrize("method", [m.name for m in USABLE if m.models[1] is None])
def test_every_method_merges_three_adapters_into_one_that_peft_loads(method, base, make, tmp_path):
    parts = [make("plain", 1), make("plain", 2), make("patterns", 3)]
    settings = {"density": 0.5} if "density" in {p.name for p in wo.ops.find(method).parameters} else {}
    out = wo.merge_adapters(parts, method=method, settings=settings, rank=6).save(tmp_path / "out", progress=False)
    assert all(torch.isfinite(product).all() for product in products(out).values())
    assert torch.isfinite(tiny_adapters.logits(base, out)).all()


def test_ties_runs_on_the_core_matrices(make):
    from weightops.ops.ties import ties

    merge = wo.merge_adapters([make("plain", 1), make("plain", 2)], method="ties", settings={"density": 0.4})
    target = merge.targets[0]
    space = core_space(merge._read(target))
    wanted = in_full(space, ties(space.cores, density=0.4))
    result = merge.update(target)
    torch.testing.assert_close(result.left @ result.right, wanted, rtol=1e-9, atol=1e-9)


def test_a_method_over_whole_models_gets_their_inner_products(make):
    merge = wo.merge_adapters([make("plain", 1), make("plain", 2)], method="metagpt")
    dense = [torch.cat([p.flatten() for p in products(make("plain", seed)).values()]) for seed in (1, 2)]
    squares = torch.stack([each @ each for each in dense])
    assert merge.coefficients == pytest.approx((squares / squares.sum()).tolist(), rel=1e-6)


def test_factors_are_averaged_apart(make, tmp_path):
    parts = [make("plain", 1), make("plain", 2)]
    out = wo.merge_adapters(parts, space="factors").save(tmp_path / "out", progress=False)
    first, second, merged = (load_file(part / "adapter_model.safetensors") for part in (*parts, out))
    for name, tensor in merged.items():
        scale = 2.0 if "lora_B" in name else 1.0  # alpha 8 over rank 4 lies in B
        torch.testing.assert_close(tensor, scale * (first[name] + second[name]) / 2)


def test_weights_by_tokens_are_read_beside_the_adapters(make, tmp_path):
    parts = [tiny.copy(make("plain", seed), tmp_path / str(seed)) for seed in (1, 2)]
    for part, count in zip(parts, (300, 100), strict=True):
        (part / "training.json").write_text(json.dumps({"learnt_tokens": count, "rows": 1}))
    assert wo.merge_adapters(parts, weights="tokens").coefficients == (0.75, 0.25)
    assert wo.merge_adapters(parts, weights="rows").coefficients == (0.5, 0.5)
    (parts[1] / "training.json").write_text('{"rows": 1, "tokens": 7}')
    with pytest.raises(WeightopsError, match=r"2/training.json: does not have learnt_tokens, because an earlier ver"):
        wo.merge_adapters(parts, weights="tokens")
    (parts[1] / "training.json").unlink()
    with pytest.raises(
        WeightopsError, match=r"2/training.json: does not exist, .*; give the weights yourself, or train"
    ):
        wo.merge_adapters(parts, weights="rows")


def test_threads_do_not_change_a_byte(make, tmp_path):
    parts = [make("plain", 1), make("patterns", 2)]
    for threads in (1, 5):
        merge = wo.merge_adapters(parts, method="dare_ties", settings={"density": 0.5}, seed=4)
        merge.save(tmp_path / str(threads), threads=threads, progress=False)
    assert tiny.files_of(tmp_path / "1") == tiny.files_of(tmp_path / "5")


def test_the_same_adapter_twice_is_that_adapter_at_its_rank(make, tmp_path):
    out = wo.merge_adapters([make(), make()]).save(tmp_path / "out", progress=False)
    assert_same_products(products(make()), products(out))
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4


def test_the_folder_says_what_it_is(base, make, tmp_path):
    parts = [tiny.copy(make("plain", seed), tmp_path / str(seed)) for seed in (1, 2)]
    for part in parts:
        config = json.loads((part / "adapter_config.json").read_text())
        (part / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    out = wo.merge_adapters(parts).save(tmp_path / "out", progress=False)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["r"] == config["lora_alpha"] == 8
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card
    assert "base_model: org/base" in card
    record = json.loads((out / "weightops.json").read_text())
    assert [source["name"] for source in record["sources"]] == [str(part) for part in parts]
    tiny_adapters.change_tensors(out, lambda name, tensor: tensor + 1)
    assert len(verify(out)) == len(record["outputs"])


def test_an_output_is_replaced_only_on_request(make, tmp_path):
    merge = wo.merge_adapters([make()])
    out = merge.save(tmp_path / "out", progress=False)
    with pytest.raises(WeightopsError, match="exists already"):
        merge.save(out, progress=False)
    assert merge.save(out, overwrite=True, progress=False) == out


def another_base(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))


def setting(**keys: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**config, **keys}))

    return change


def wider(adapter: Path) -> None:
    tiny_adapters.change_tensors(
        adapter, lambda name, t: torch.cat([t, t], 1).contiguous() if "q_proj.lora_A" in name else t
    )


def more_tensors(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.model.norm.weight": torch.ones(16)}, file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (another_base, "different bases .*org/other"),
        (setting(base_model_name_or_path=None), "names no base"),
        (setting(use_dora=True), "use_dora is set"),
        (setting(lora_bias=True), "lora_bias is set"),
        (setting(kasa_config={"beta": 1}), "kasa_config is set"),
        (wider, r"q_proj.*the adapters belong to different bases"),
        (more_tensors, "model.norm.weight: held whole by an adapter"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(change, problem, make, tmp_path):
    bad = tiny.copy(make("plain", 2), tmp_path / "bad")
    change(bad)
    with pytest.raises(WeightopsError, match=problem):
        wo.merge_adapters([make("plain", 1), bad])


def test_a_base_that_is_named_settles_what_the_adapters_call_it(make, tmp_path):
    other = tiny.copy(make("plain", 2), tmp_path / "other")
    another_base(other)
    out = wo.merge_adapters([make("plain", 1), other], base="org/base").save(tmp_path / "out", progress=False)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


def test_untrained_adapters_merge_to_nothing(make, tmp_path):
    zero = tiny.copy(make("plain", 2), tmp_path / "zero")
    tiny_adapters.change_tensors(zero, lambda name, tensor: 0 * tensor if "lora_B" in name else tensor)
    for method, space in (("ties", "core"), ("linear", "product"), ("linear", "core")):
        merge = wo.merge_adapters([zero, zero], method=method, space=space, rank=3)
        out = merge.save(tmp_path / f"{method}-{space}", progress=False)
        assert all(not product.any() for product in products(out).values())
    with pytest.raises(WeightopsError, match="linear finds no coefficients"):
        merge._finite([0.5, float("nan")])


def test_an_adapter_whose_modules_all_differ_in_rank_is_read_again(tmp_path):
    """PEFT reads a rank for each module as a pattern; a large model has thousands."""
    modules = [f"model.layers.{i}.mlp.{part}_proj" for i in range(600) for part in ("up", "down")]
    factors, alphas = {}, {}
    for place, module in enumerate(modules):
        rank = 1 + place % 3
        alphas[module.replace(".", r"\.")] = float(rank * (1 + place))
        factors[f"base_model.model.{module}.lora_A.weight"] = torch.ones(rank, 2)
        factors[f"base_model.model.{module}.lora_B.weight"] = torch.ones(2, rank)
    (tmp_path / "a").mkdir()
    save_file(factors, tmp_path / "a/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 7, "alpha_pattern": alphas, "base_model_name_or_path": "o/b"}
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    out = wo.merge_adapters([tmp_path / "a"], rank=2).save(tmp_path / "out", progress=False)
    assert_same_products(products(tmp_path / "a"), products(out))
    updates = wo.open_adapter(tmp_path / "a").changes[0].of.updates
    scales = [updates[f"{module}.weight"].scale for module in modules]
    assert scales == [1 + place for place in range(len(modules))]


def test_nan_factors_are_named(make, tmp_path):
    bad = tiny.copy(make("plain", 2), tmp_path / "bad")
    tiny_adapters.change_tensors(
        bad, lambda name, t: t * float("nan") if "layers.1.self_attn.v_proj.lora_B" in name else t
    )
    with pytest.raises(WeightopsError, match=r"bad/adapter_model.safetensors: .*1.self_attn.v_proj.lora_B.* NaN"):
        wo.merge_adapters([make("plain", 1), bad]).save(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"space": "dense"}, "unknown space 'dense'; available: core, product, factors"),
        ({"rank": 0}, "rank must be a whole number of at least 1, not 0"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"method": "slerp"}, "slerp merges whole weights"),
        ({"method": "tiess"}, "unknown merge method 'tiess'"),
        ({"method": "ties", "space": "product"}, "ties is not a linear combination"),
        ({"method": "ties", "space": "factors"}, "ties cannot merge the factors apart"),
        ({"space": "factors", "rank": 2}, "averaged at their own rank"),
        ({"weights": "luck"}, "weights 'luck'"),
        ({"weights": [1.0]}, "weight has 1 values for 2 models"),
        ({"weights": [1.0, -1.0]}, "weights sum to 0"),
        ({"settings": {"density": 0.5}}, "linear: unknown parameter 'density'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, problem, make, tmp_path):
    with pytest.raises(WeightopsError, match=problem):
        wo.merge_adapters([make("plain", 1), make("plain", 2)], **arguments).save(tmp_path / "out", progress=False)


def test_no_adapters_and_no_adapter(base, tmp_path):
    with pytest.raises(WeightopsError, match="no adapters to merge"):
        wo.merge_adapters([])
    with pytest.raises(WeightopsError, match=r"no adapter_config.json"):
        wo.merge_adapters([base])


def test_factors_of_different_ranks_have_no_mean(make):
    with pytest.raises(WeightopsError, match="the factors have no mean"):
        wo.merge_adapters([make("plain", 1), make("plain", 2, r=3)], space="factors")
    with pytest.raises(WeightopsError, match="not changed by every adapter"):
        wo.merge_adapters([make("plain", 1), make("embeddings", 1)], space="factors")
