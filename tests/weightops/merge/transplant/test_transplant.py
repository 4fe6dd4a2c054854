"""Transplanted tokenizers: rows against mergekit-tokensurgeon's and against plain arithmetic, files, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
import tiny_vocabularies as vocabularies
import torch
from click.testing import CliRunner
from far_device import FarDevice, is_far
from merge_files import config_of, quiet
from transformers import PreTrainedTokenizerFast

from weightops.errors import WeightopsError
from weightops.merge.tokens.model_tokens import read_tokens
from weightops.merge.transplant import combinations
from weightops.merge.transplant.token_texts import same_tokens
from weightops.merge.transplant.transplant import plan_transplant
from weightops.output.provenance import verify

LETTERS = "abcdefghijklmnopqrstuvwxyzĠ"
SHARED = ["t h", "th e", "i n", "Ġ a", "o n", "e r", "a t"]
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def llama(folder: Path, tokenizer, *, hidden: int, seed: int, tied: bool = False, **named: str) -> Path:
    """A random Llama with this tokenizer, and two rows of padding."""
    rows = tokenizer.get_vocab_size() + 2
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows, "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 64, "tie_word_embeddings": tied, "dtype": "float32",
        "bos_token_id": tokenizer.token_to_id(named["bos_token"]),
        "eos_token_id": tokenizer.token_to_id(named["eos_token"]),
    }  # fmt: skip
    tensors = tiny.llama(seed, vocab=rows, hidden=hidden, layers=1, tied=tied, dtype=torch.float32)
    tiny.write(folder, tensors, config=config)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


def first_tokenizer():
    return vocabularies.special(vocabularies.bpe(LETTERS, *SHARED), "<s>", "</s>")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """A model, and a donor of another width with further tokens."""
    folder = tmp_path_factory.mktemp("pair")
    merges = (*SHARED[::-1], "Ġ t", "Ġt h", "h in", "q u")
    second = vocabularies.special(vocabularies.bpe(LETTERS[::-1], *merges), "<|begin|>", "<|end|>")
    model = llama(folder / "model", first_tokenizer(), hidden=16, seed=1, bos_token="<s>", eos_token="</s>")
    donor = llama(folder / "donor", second, hidden=12, seed=2, bos_token="<|begin|>", eos_token="<|end|>")
    return model, donor


def made(model, donor, out: Path, *, memory: int = 1 << 28, threads: int = 2, **options) -> Path:
    planned = plan_transplant(model, donor, **options)
    return planned.write(planned.prepared(out), progress=False, threads=threads, memory=memory).folder


def theirs(model: Path, donor: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    from mergekit.scripts.tokensurgeon import main

    with quiet():
        done = CliRunner().invoke(main, [str(model), str(donor), str(out), *options], catch_exceptions=False)
    assert done.exit_code == 0
    return tiny.read(out)


def vocabulary(folder: Path) -> dict[str, int]:
    """Every token's number, added ones too."""
    document = json.loads((folder / "tokenizer.json").read_text())
    return {**document["model"]["vocab"], **{token["content"]: token["id"] for token in document["added_tokens"]}}


@pytest.mark.parametrize("method", ["omp", "common_interpolation", "subword", "mean", "zero"])
def test_every_row_of_a_token_is_mergekits(method, pair, tmp_path):
    mine = tiny.read(made(*pair, tmp_path / "ours", method=method, k=6))
    other = theirs(*pair, tmp_path / "theirs", "-a", method, "-k", "6")
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert tensor.shape == other[name].shape
        assert torch.allclose(tensor, other[name], atol=1e-5), name


def test_tokens_that_both_have_keep_their_rows_bit_for_bit_also_by_role(pair, tmp_path):
    model, donor = pair
    out = made(model, donor, tmp_path / "out", k=6)
    before, after = tiny.read(model), tiny.read(out)
    first, second = vocabulary(model), vocabulary(donor)
    same = {second[token]: first[token] for token in first.keys() & second.keys()}
    same |= {second["<|begin|>"]: first["<s>"], second["<|end|>"]: first["</s>"]}
    assert len(same) == len(LETTERS) + len(SHARED) + 2
    for name in TABLES:
        assert after[name].shape == (len(second), 16)
        assert all(torch.equal(after[name][row], before[name][source]) for row, source in same.items())
    assert all(tiny.same_bytes(before[name], after[name]) for name in before.keys() - set(TABLES))


def test_the_output_loads_with_the_donors_tokenizer_and_numbers(pair, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = made(*pair, tmp_path / "out", k=6, pad_to_multiple_of=16)
    assert verify(out) == []
    config, tokenizer = config_of(out), AutoTokenizer.from_pretrained(out)
    assert config["vocab_size"] % 16 == 0
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(pair[1]).get_vocab()
    assert [config["bos_token_id"], config["eos_token_id"]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(out)
        ids = tokenizer("the thin hat", return_tensors="pt")["input_ids"]
        assert torch.isfinite(model(ids).logits).all()
    padding = tiny.read(out)["lm_head.weight"][-1]
    assert torch.allclose(padding, tiny.read(pair[0])["lm_head.weight"].mean(0), atol=1e-6)


@pytest.mark.parametrize("method", ["omp", "common_interpolation"])
def test_threads_and_memory_change_no_byte(method, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(combinations, "BLOCK_ROWS", 8)
    monkeypatch.setattr(combinations, "BATCH", 2)
    one = made(*pair, tmp_path / "one", k=6, method=method, threads=1)
    planned = plan_transplant(*pair, k=6, method=method)
    for rows in planned.tables.values():  # more atoms than may stay in memory
        rows.compute(planned.match, method, 6, threads=3, memory=100, advance=lambda count: None)
    expected = plan_transplant(*pair, k=6, method=method)
    expected.write(expected.prepared(tmp_path / "again"), progress=False, threads=2)
    for name, rows in planned.tables.items():
        assert (rows.combinations.rows == expected.tables[name].combinations.rows).all()
        assert (rows.combinations.coefficients == expected.tables[name].combinations.coefficients).all()
    assert tiny.files_of(one)["model.safetensors"] == tiny.files_of(tmp_path / "again")["model.safetensors"]


@pytest.mark.parametrize("taker", [combinations.matching_pursuit, combinations.nearest])
def test_a_search_stays_on_its_device(taker, pair):
    table = plan_transplant(*pair, k=6).tables["lm_head.weight"].donor
    rows = np.arange(20)
    near = combinations.Atoms(table, rows, kept=True)
    expected = taker(near.there(rows[:3]), near, 4)
    with FarDevice():
        far = combinations.Atoms(table, rows, kept=True, device="cuda:0")
        taken = taker(far.there(rows[:3]), far, 4)
        assert all(is_far(tensor) for tensor in taken)
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))


def test_omp_finds_the_atoms_of_a_row_that_is_a_sum_of_two(tmp_path, pair):
    """The donor's row is 3 a - 2 e with orthonormal atoms, so the model's is the same sum of its own rows."""
    model, donor = pair[0], tiny.copy(pair[1], tmp_path / "donor")
    tensors, ids = tiny.read(donor), vocabulary(donor)
    for name in TABLES:
        orthogonal = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
        tensors[name] *= 1e-3
        for n, letter in enumerate("abcdefghijkl"):
            tensors[name][ids[letter]] = orthogonal[n]
        tensors[name][ids["hin"]] = 3 * orthogonal[0] - 2 * orthogonal[4]
    tiny.rewrite(donor, tensors)
    out, own, source = tiny.read(made(model, donor, tmp_path / "out", k=2)), vocabulary(model), tiny.read(model)
    for name in TABLES:
        expected = 3 * source[name][own["a"]] - 2 * source[name][own["e"]]
        assert torch.allclose(out[name][ids["hin"]], expected, atol=1e-5)


def test_atoms_that_repeat_give_finite_rows(tmp_path, pair):
    """Rows of zeros and equal rows, as untrained tokens have, and more atoms than dimensions."""
    model, donor = pair[0], tiny.copy(pair[1], tmp_path / "donor")
    tensors = tiny.read(donor)
    for name in TABLES:
        tensors[name][:20] = tensors[name][0]
        tensors[name][20:24] = 0
    tiny.rewrite(donor, tensors)
    out = tiny.read(made(model, donor, tmp_path / "out", k=30))
    largest = max(float(tensor.abs().max()) for tensor in tiny.read(model).values())
    assert all(float(out[name].abs().max()) < 100 * largest for name in TABLES)


def test_a_tied_model_gets_one_table_and_a_tokenizer_alone_is_enough_for_subword(pair, tmp_path):
    tied = llama(tmp_path / "t", first_tokenizer(), hidden=16, seed=1, tied=True, bos_token="<s>", eos_token="</s>")
    alone = tiny.copy(pair[1], tmp_path / "alone")
    (alone / "model.safetensors").unlink()
    out = tiny.read(made(tied, alone, tmp_path / "out", method="subword"))
    assert "lm_head.weight" not in out
    tokens, table = vocabulary(tied), tiny.read(tied)["model.embed_tokens.weight"]
    row = out["model.embed_tokens.weight"][vocabulary(alone)["hin"]]
    assert torch.allclose(row, (table[tokens["h"]] + table[tokens["in"]]) / 2, atol=1e-6)
    with pytest.raises(WeightopsError, match="has no weights, which omp makes rows from"):
        plan_transplant(tied, alone)


def test_a_token_without_any_source_is_named_and_gets_the_mean(pair, tmp_path):
    model, donor = pair[0], tiny.copy(pair[1], tmp_path / "donor")
    tensors, last = tiny.read(donor), vocabulary(donor)["qu"]
    tiny.rewrite(donor, {name: t[:last] if name in TABLES else t for name, t in tensors.items()})
    (donor / "config.json").write_text(json.dumps({**config_of(donor), "vocab_size": last}))
    planned = plan_transplant(model, donor, k=6)
    assert any("1 tokens have nothing to make a row from" in note for note in planned.plan.notes), planned.plan.notes
    out = tiny.read(planned.write(planned.prepared(tmp_path / "out"), progress=False).folder)
    table = tiny.read(model)["lm_head.weight"]
    assert torch.allclose(out["lm_head.weight"][last], table.mean(0), atol=1e-6)


def test_bad_input_is_refused(pair, tmp_path):
    model, donor = pair
    with pytest.raises(WeightopsError, match="36 tokens in common, fewer than the 64 to make a row of; give a small"):
        plan_transplant(model, donor)
    with pytest.raises(WeightopsError, match="unknown method 'opm'; available: omp, common_interpolation"):
        plan_transplant(model, donor, method="opm")
    bare = tiny.copy(donor, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(WeightopsError, match=r"tokenizer.json: missing"):
        plan_transplant(model, bare, k=6)
    further = tiny.copy(model, tmp_path / "further")
    tensors = tiny.read(model)
    tiny.rewrite(further, {**tensors, "model.embed_tokens_per_layer.weight": tensors["lm_head.weight"].clone()})
    with pytest.raises(WeightopsError, match=r"embed_tokens_per_layer.weight has an entry for each token"):
        plan_transplant(further, donor, k=6)


def test_tokens_of_different_kinds_of_vocabularies_meet_by_their_text(tmp_path):
    from tokenizers import Tokenizer, decoders, models

    pieces = Tokenizer(models.BPE({"▁the": 0, "é": 1, "<0xC3>": 2, "ing": 3, "▁": 4}, []))
    pieces.decoder = decoders.Metaspace()
    levels = vocabularies.bpe("abĠtheÃ©ing", "Ġ t", "Ġt h", "Ġth e", "Ã ©", "i n", "in g")
    folders = {
        name: vocabularies.model(tmp_path / name, vocabularies.special(tokenizer, "<s>"))
        for name, tokenizer in (("pieces", pieces), ("levels", levels))
    }
    tokens = read_tokens(folders, folders)
    ids = tokens["levels"].ids
    wanted = {0: ids["Ġthe"], 1: ids["Ã©"], 2: ids["Ã"], 3: ids["ing"], 4: ids["Ġ"], 5: ids["<s>"]}
    assert same_tokens(tokens["pieces"], tokens["levels"]) == wanted
    assert same_tokens(tokens["levels"], tokens["pieces"]) == {theirs: ours for ours, theirs in wanted.items()}
