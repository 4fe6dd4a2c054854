"""An adapter taken out of a tuned model is the best of its rank, says what it leaves out, and gives back an adapter that was added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_adapters
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_adapters import assert_same_products, peft_adapter, products

import weightops as wo
from weightops.adapters.low_rank import leading, leading_by_energy, squared_norm
from weightops.errors import WeightopsError
from weightops.output.provenance import verify

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's advice


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama, fp32."""
    return tiny.transformer(tmp_path_factory.mktemp("extraction") / "base", "llama", tied=False)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with every tensor moved."""
    folder = tiny.copy(base, tmp_path_factory.mktemp("extraction") / "tuned")
    tiny.rewrite(folder, tiny.perturbed(tiny.read(base), 5))
    return folder


@pytest.mark.parametrize("how", [{"rank": 4}, {"energy": 1.0}, {"energy": 1.0, "rank": 9}])
def test_base_plus_adapter_gives_the_adapter_back_at_its_rank(how, base, tmp_path):
    alone = peft_adapter(base, tmp_path / "alone", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    done = wo.extract_adapter(base, f"{base}+{alone}", **how).save(tmp_path / "out", progress=False)
    assert_same_products(products(alone), products(done.folder), within=1e-5)
    assert set(done.ranks.values()) == {4}
    assert done.held == pytest.approx(1, abs=1e-6)
    same = tiny_adapters.logits(base, done.folder) - tiny_adapters.logits(base, alone)
    assert same.abs().max() < 1e-5
    assert verify(done.folder) == []


def test_embedding_and_head_are_extracted_when_asked_for(base, tmp_path):
    config = {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}
    alone = peft_adapter(base, tmp_path / "alone", **config)
    tuned = f"{base}+{alone}"
    done = wo.extract_adapter(base, tuned, rank=2, include_embeddings=True).save(tmp_path / "all", progress=False)
    same = tiny_adapters.logits(base, done.folder) - tiny_adapters.logits(base, alone)
    assert same.abs().max() < 1e-5
    less = wo.extract_adapter(base, tuned, rank=2).save(tmp_path / "less", progress=False)
    assert set(less.ranks) == {name for name in done.ranks if "q_proj" in name}
    assert {part.part: part.extracted for part in less.parts} == {"head": 0, "embedding": 0, "attention": 2}


def test_conv1d_layers_are_transposed(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=24, n_positions=32)).save_pretrained(base)
    tuned = tiny.copy(base, tmp_path / "tuned")
    moved = {name: t + (0.1 if "c_attn.weight" in name else 0) for name, t in tiny.read(base).items()}
    tiny.rewrite(tuned, moved)
    done = wo.extract_adapter(base, tuned, rank=1).save(tmp_path / "out", progress=False)
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tuned).double()(torch.arange(1, 13)[None]).logits
    assert (tiny_adapters.logits(base, done.folder) - wanted).abs().max() < 1e-5


def test_the_shares_are_those_of_the_dense_change(base, tuned, tmp_path):
    done = wo.extract_adapter(base, tuned, rank=3).save(tmp_path / "out", progress=False)
    before, after, held = tiny.read(base), tiny.read(tuned), products(done.folder)
    total = sum(float((after[n].double() - before[n].double()).square().sum()) for n in before)
    left = sum(float((after[n].double() - before[n].double() - held.get(n, 0)).square().sum()) for n in before)
    assert done.held == pytest.approx(1 - left / total, abs=1e-5)
    parts = {part.part: part for part in done.parts}
    assert parts["norm"].held == parts["embedding"].held == parts["head"].held == 0
    assert parts["norm"].tensors == 5
    assert sum(part.change for part in done.parts) == pytest.approx(total, rel=1e-5)


def test_energy_takes_the_fewest_ranks_that_hold_it(base, tuned, tmp_path):
    done = wo.extract_adapter(base, tuned, energy=0.8).save(tmp_path / "out", progress=False)
    before, after = tiny.read(base), tiny.read(tuned)
    for name, rank in done.ranks.items():
        squares = torch.linalg.svdvals((after[name].float() - before[name].float()).double()).square()
        held = squares.cumsum(0) / squares.sum()
        assert held[rank - 1] >= 0.8 - 1e-5
        assert rank == 1 or held[rank - 2] < 0.8 + 1e-5
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] != {}
    assert torch.isfinite(tiny_adapters.logits(base, done.folder)).all()
    assert_same_products(products(done.folder), {n: p for n, p in products(done.folder).items() if n in done.ranks})


def test_mergekit_extracts_the_same_energy(base, tuned, tmp_path):
    """The oracle, within 1 %: its SVD is exact."""
    from click.testing import CliRunner
    from mergekit.scripts.extract_lora import main

    theirs = tmp_path / "theirs"
    arguments = ["--model", tuned, "--base-model", base, "--out-path", theirs, "--max-rank", 4]
    modules = ["-i", "proj", "--skip-undecomposable"]
    ran = CliRunner().invoke(main, [str(a) for a in (*arguments, *modules)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    done = wo.extract_adapter(base, tuned, rank=4).save(tmp_path / "ours", progress=False)
    ours, mergekit = products(done.folder), products(theirs)
    assert ours.keys() == mergekit.keys()
    for name, product in ours.items():
        assert float(product.square().sum()) == pytest.approx(float(mergekit[name].square().sum()), rel=0.01)


@given(st.integers(2, 90), st.integers(2, 90), st.integers(1, 8), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_a_matrix_of_low_rank_is_found_again(rows, columns, rank, seed):
    draw = torch.Generator().manual_seed(seed)
    rank = min(rank, rows, columns)
    matrix = torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)
    result = leading(matrix, rank, "w")
    again = (result.left * result.values) @ result.right.T
    assert (again - matrix).norm() <= 1e-4 * matrix.norm()
    eye = torch.eye(len(result.values))
    torch.testing.assert_close(result.left.T @ result.left, eye, atol=1e-4, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_randomised_energy_is_the_exact_one_within_one_percent(decay):
    """Also of a flat spectrum, the hardest."""
    draw = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, 200, generator=draw))[0] for n in (400, 300))
    matrix = (left * torch.arange(1, 201).float().pow(-decay)) @ right.T
    matrix = matrix + 1e-3 * torch.randn(400, 300, generator=draw)
    exact = torch.linalg.svdvals(matrix)[:16].square().sum()
    assert leading(matrix, 16, "w").energy == pytest.approx(float(exact), rel=0.01)


def test_energy_is_reached_by_doubling_the_rank():
    draw = torch.Generator().manual_seed(2)
    matrix = torch.randn(500, 400, generator=draw)
    values = torch.linalg.svdvals(matrix).square()
    exact = int((values.cumsum(0) / values.sum() < 0.3).sum()) + 1
    factors = leading_by_energy(matrix, 0.3, None, "w")
    assert exact <= len(factors.values) <= exact + 2
    assert factors.energy >= 0.3 * squared_norm(matrix) * (1 - 1e-5)
    assert len(leading_by_energy(matrix, 0.3, 7, "w").values) == 7


def test_threads_do_not_change_a_byte(base, tuned, tmp_path):
    for threads in (1, 4):
        wo.extract_adapter(base, tuned, rank=2).save(tmp_path / str(threads), threads=threads, progress=False)
    assert tiny.files_of(tmp_path / "1") == tiny.files_of(tmp_path / "4")


def test_a_grown_vocabulary_and_a_rank_too_large_are_said(base, tuned, tmp_path):
    grown = tiny.copy(tuned, tmp_path / "grown")
    tensors = tiny.read(tuned)
    tensors["lm_head.weight"] = torch.zeros(30, 16)
    tensors["extra.weight"] = torch.zeros(2)
    tiny.rewrite(grown, tensors)
    notes = wo.extract_adapter(base, grown, rank=99).plan().notes
    assert any("1 tensors of different shapes" in note and "lm_head.weight" in note for note in notes)
    assert any("1 tensors only in" in note and "extra.weight" in note for note in notes)
    assert any("rank 99" in note and "16 at most" in note for note in notes)


def test_the_record_covers_both_models(base, tuned, tmp_path):
    done = wo.extract_adapter(base, tuned, rank=1).save(tmp_path / "out", progress=False)
    record = json.loads((done.folder / "weightops.json").read_text())
    assert [(source["name"], source["tensors"]) for source in record["sources"]] == [(str(base), 21), (str(tuned), 21)]
    assert record["recipe"]["rank"] == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "no rank for the adapter"),
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"energy": 1.5}, r"energy must be in \(0, 1\]"),
        ({"rank": 1, "dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, problem, base, tuned):
    with pytest.raises(WeightopsError, match=problem):
        wo.extract_adapter(base, tuned, **arguments)


def test_models_with_nothing_to_extract_are_refused(base, tmp_path):
    with pytest.raises(WeightopsError, match="no matrix that an adapter can hold differs"):
        wo.extract_adapter(base, base, rank=1)
    copy = tiny.copy(base, tmp_path / "copy")
    with pytest.raises(WeightopsError, match="no tensor changes"):
        wo.extract_adapter(base, copy, rank=1).save(tmp_path / "out", progress=False)
    other = tiny.write(tmp_path / "other", {"w": torch.zeros(2, 2)})
    with pytest.raises(WeightopsError, match="have no tensor name in common"):
        wo.extract_adapter(base, other, rank=1)
    alone = peft_adapter(base, tmp_path / "alone", r=2, target_modules=["q_proj"])
    with pytest.raises(WeightopsError, match="an adapter needs a plain model as its base"):
        wo.extract_adapter(f"{base}+{alone}", base, rank=1)


def test_nan_is_named(base, tuned, tmp_path):
    bad = tiny.copy(tuned, tmp_path / "bad")
    tensors = tiny.read(tuned)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    tiny.rewrite(bad, tensors)
    with pytest.raises(WeightopsError, match=r"layers.1.mlp.up_proj.weight.*NaN"):
        wo.extract_adapter(base, bad, rank=1).save(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    assert load_file(bad / "model.safetensors")
