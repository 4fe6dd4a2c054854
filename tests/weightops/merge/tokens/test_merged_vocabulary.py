"""Merges of models whose vocabularies differ, from the command line to transformers: every token keeps its own row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_architectures as architectures
import tiny_models as tiny
import torch
from click.testing import CliRunner
from merge_files import config_of, llama, quiet
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from weightops.cli import main

HEAD = tiny.WORDS[:3]
VOCABULARIES = {
    "a": [*HEAD, "safe", "unsafe", "user", "assistant", ":", "hello"],
    "b": [*HEAD, "hello", ":", "kill", "user", "assistant", "safe", "python"],
    "c": [*HEAD, "user", "zebra", "hello", "assistant", ":"],
}


def model(folder: Path, words: list[str], seed: int, rows: int | None = None, tied: bool = False) -> Path:
    """A Llama with a tokenizer of these words; further rows are padding."""
    llama(folder, layers=2, vocab=rows or len(words), seed=seed, tied=tied)
    tiny.tokenizer(folder, words)
    return folder


@pytest.fixture
def models(tmp_path) -> dict[str, Path]:
    return {n: model(tmp_path / n, words, seed) for seed, (n, words) in enumerate(VOCABULARIES.items())}


def merge(text: str, out: Path, code: int = 0) -> str:
    """The command; what it printed."""
    file = out.parent / "config.yml"
    file.write_text(text)
    done = CliRunner().invoke(main, ["merge", str(file), str(out)])
    assert done.exit_code == code, done.output
    return done.output


def load(folder: Path):
    with quiet():
        loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not any(report.values()), report
    return loaded.eval(), tokenizer


def rows_of(folder: Path, name: str = "model.embed_tokens.weight") -> dict[str, torch.Tensor]:
    """Each token's row."""
    with quiet():
        ids = AutoTokenizer.from_pretrained(folder).get_vocab()
    matrix = tiny.read(folder)[name]
    return {token: matrix[number] for token, number in ids.items()}


MATRICES = ["model.embed_tokens.weight", "lm_head.weight"]
LINEAR = "merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{weight: 1}}\n"


@pytest.mark.parametrize("source", [None, "base", "union", "a", "b"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_each_token_is_the_mean_over_the_models_with_what_stands_in_for_it(models, tmp_path, source, matrix):
    text = LINEAR.format(**models)
    text += f"tokenizer_source: {models.get(source, source)}\n" if source else ""
    merge(text, tmp_path / "out")
    merged, tokenizer = load(tmp_path / "out")
    of_a, of_b, of_merged = (rows_of(folder, matrix) for folder in (models["a"], models["b"], tmp_path / "out"))
    wanted = {None: of_a, "base": of_a, "union": {**of_a, **of_b}, "a": of_a, "b": of_b}[source]
    assert set(of_merged) == set(wanted)
    assert config_of(tmp_path / "out")["vocab_size"] == len(wanted) == merged.get_input_embeddings().num_embeddings
    for token, row in of_merged.items():
        if token in of_a and token in of_b:
            torch.testing.assert_close(row, (of_a[token] + of_b[token]) / 2, rtol=0, atol=1e-7)
        else:  # one model has it: the other takes that row too, so the row itself comes out
            torch.testing.assert_close(row, of_a.get(token, of_b.get(token)), rtol=0, atol=1e-7)
    assert tokenizer("hello user", add_special_tokens=False)["input_ids"] == [
        tokenizer.get_vocab()[word] for word in ("hello", "user")
    ]


@pytest.mark.parametrize("source", ["base", "union"])
def test_ties_of_models_with_other_vocabularies_is_ties_of_the_aligned_matrices(models, tmp_path, source):
    text = (
        "merge_method: ties\nbase_model: {a}\nmodels: [{{model: {b}}}, {{model: {c}}}]\nparameters: {{density: 0.5}}\n"
    )
    merge(text.format(**models) + f"tokenizer_source: {source}\n", tmp_path / "out")
    merged = rows_of(tmp_path / "out")
    order = sorted(merged, key=lambda token: load(tmp_path / "out")[1].get_vocab()[token])
    of = {name: rows_of(folder) for name, folder in models.items()}
    base, *others = ([_row(of, token, name) for token in order] for name in "abc")
    from weightops.ops import find

    start = torch.stack(base)
    deltas = torch.stack([torch.stack(rows) for rows in others]) - start
    true = start + find("ties").function(deltas, density=0.5)
    assert torch.equal(torch.stack([merged[token] for token in order]), true)


def test_a_method_that_looks_at_whole_models_measures_the_aligned_matrices(models, tmp_path):
    text = "merge_method: metagpt\nbase_model: {a}\nmodels: [{{model: {b}}}, {{model: {c}}}]\n".format(**models)
    merge(f"{text}tokenizer_source: union\n", tmp_path / "out")
    squares = torch.zeros(2, dtype=torch.float64)
    deltas = {}
    for name, written in tiny.read(tmp_path / "out").items():
        if name in MATRICES:
            of, tokens = {n: rows_of(folder, name) for n, folder in models.items()}, rows_of(tmp_path / "out", name)
            base, *others = (torch.stack([_row(of, token, n) for token in tokens]) for n in "abc")
            written = torch.stack(list(tokens.values()))
        else:
            base, *others = (tiny.read(folder)[name] for folder in models.values())
        deltas[name] = written, base, torch.stack(others) - base
        squares += deltas[name][2].double().square().flatten(1).sum(1)
    for name, (written, base, delta) in deltas.items():
        share = (squares / squares.sum()).float().reshape(2, *[1] * base.dim())
        torch.testing.assert_close(written, base + (share * delta).sum(0), rtol=1e-6, atol=1e-7, msg=name)


def _row(of: dict[str, dict[str, torch.Tensor]], token: str, model: str) -> torch.Tensor:
    """A model's row of a token: its own, else the base's, else the mean over those that have it, as mergekit has it."""
    if token in of[model]:
        return of[model][token]
    if token in of["a"]:
        return of["a"][token]
    have = [rows[token] for rows in of.values() if token in rows]
    return torch.stack(have).mean(0)


@pytest.mark.parametrize("source", ["union", "base", "b"])
def test_tokens_have_the_rows_that_mergekit_gives_them(models, tmp_path, source):
    import merge_files

    pytest.importorskip("mergekit.merge")
    text = LINEAR.format(**models) + f"tokenizer_source: {models.get(source, source)}\n"
    if source == "base":
        text += f"base_model: {models['a']}\n"
    text += "dtype: float32\n"
    merge(text, tmp_path / "ours")
    merge_files.theirs(text, tmp_path / "theirs")
    for matrix in MATRICES:
        mine, other = rows_of(tmp_path / "ours", matrix), rows_of(tmp_path / "theirs", matrix)
        assert mine.keys() == other.keys()
        for token, row in mine.items():
            torch.testing.assert_close(row, other[token], rtol=0, atol=1e-7)
    assert config_of(tmp_path / "ours")["vocab_size"] == config_of(tmp_path / "theirs")["vocab_size"]


def test_special_tokens_chat_template_and_generation_survive(models, tmp_path):
    merge(LINEAR.format(**models) + "tokenizer_source: union\n", tmp_path / "out")
    merged, tokenizer = load(tmp_path / "out")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert rendered == "user : hello assistant :"
    ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    with quiet():
        assert merged.generate(ids, max_new_tokens=2, do_sample=False).shape[1] <= ids.shape[1] + 2


def test_a_merge_of_permuted_copies_of_one_model_is_that_model(tmp_path):
    # b is a with its vocabulary in another order: aligned by token, their mean must compute what a computes.
    a = model(tmp_path / "a", VOCABULARIES["a"], 0)
    words = [*HEAD, *reversed(VOCABULARIES["a"][3:])]
    b, rows = model(tmp_path / "b", words, 0), [VOCABULARIES["a"].index(word) for word in words]
    tiny.rewrite(b, {n: t[rows].clone() if n in MATRICES else t for n, t in tiny.read(a).items()})
    merge(LINEAR.format(a=a, b=b), tmp_path / "out")
    first, second = tiny.read(a), tiny.read(tmp_path / "out")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@pytest.mark.parametrize("text", ["", "tokenizer_source: base\n", "tokenizer_source: union\n"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_padded_vocabularies_stay_padded(tmp_path, text, method):
    a, b = (model(tmp_path / name, VOCABULARIES["a"], seed, rows=16) for seed, name in enumerate("ab"))
    base = "base_model: {a}\n" if method == "ties" else ""
    head = f"merge_method: {method}\n{base}models: [{{{{model: {{a}}}}}}, {{{{model: {{b}}}}}}]\n"
    merge(head.format(a=a, b=b) + text, tmp_path / "out")
    of_a, of_b, out = tiny.read(a), tiny.read(b), tiny.read(tmp_path / "out")
    for matrix in MATRICES:
        assert out[matrix].shape == (16, 16)
        expected = (of_a[matrix] + of_b[matrix]) / 2 if method == "linear" else of_b[matrix]
        torch.testing.assert_close(out[matrix], expected, rtol=0, atol=1e-7)
    assert config_of(tmp_path / "out")["vocab_size"] == 16
    load(tmp_path / "out")


def test_mergekit_cuts_the_padding_off(tmp_path):
    import merge_files

    pytest.importorskip("mergekit.merge")
    a, b = (model(tmp_path / name, VOCABULARIES["a"], seed, rows=16) for seed, name in enumerate("ab"))
    merge_files.theirs(LINEAR.format(a=a, b=b) + "tokenizer_source: base\ndtype: float32\n", tmp_path / "theirs")
    assert tiny.read(tmp_path / "theirs")["lm_head.weight"].shape[0] < 16


def test_single_tokens_come_from_where_the_file_says(models, tmp_path):
    text = (
        LINEAR.format(**models)
        + f"""
tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens:
    python: {{source: {{kind: zero}}}}
    hello: {{source: {models["b"]}, force: true}}
    kill: {{source: {{kind: model_token, model: {models["a"]}, token: unsafe}}}}
"""
    )
    merge(text, tmp_path / "out")
    of_a, of_b, merged = (rows_of(folder) for folder in (models["a"], models["b"], tmp_path / "out"))
    torch.testing.assert_close(merged["python"], of_b["python"] / 2)  # a lacks it and counts as zeros
    assert torch.equal(merged["hello"], of_b["hello"])
    torch.testing.assert_close(merged["kill"], (of_b["kill"] + of_a["unsafe"]) / 2)
    size = config_of(tmp_path / "out")["vocab_size"]
    assert size % 8 == 0
    assert size == len(tiny.read(tmp_path / "out")["lm_head.weight"]) >= len(merged)
    load(tmp_path / "out")


@pytest.mark.parametrize("source", ["base", "union"])
def test_a_tied_and_an_untied_model_merge_by_what_the_first_is(tmp_path, source):
    a = model(tmp_path / "a", VOCABULARIES["a"], 0)
    b = model(tmp_path / "b", VOCABULARIES["b"], 1, tied=True)
    merge(LINEAR.format(a=a, b=b) + f"tokenizer_source: {source}\n", tmp_path / "out")
    head, of_a, of_b = rows_of(tmp_path / "out", "lm_head.weight"), rows_of(a, "lm_head.weight"), rows_of(b)
    for token in set(of_a) & set(of_b):  # b's head is its embedding
        torch.testing.assert_close(head[token], (of_a[token] + of_b[token]) / 2, rtol=0, atol=1e-7)
    load(tmp_path / "out")


def test_the_vocabulary_size_is_set_inside_the_text_config_too(tmp_path):
    with quiet():
        a, b = architectures.save(tmp_path, "gemma3-vision", [0, 1])
    keep = list(range(39))
    tiny.tokenizer(a, [*VOCABULARIES["a"], *(f"x{i}" for i in range(31))])
    tiny.tokenizer(b, [*VOCABULARIES["a"], *(f"x{i}" for i in keep[:31]), "extra"])
    embedding = next(name for name in tiny.read(b) if name.endswith("embed_tokens.weight"))
    wide = {n: torch.cat([t, t[:1]]) if n == embedding else t for n, t in tiny.read(b).items()}
    tiny.rewrite(b, wide)
    config = config_of(b)
    config["text_config"]["vocab_size"] = 41
    (b / "config.json").write_text(json.dumps(config))
    merge(
        f"merge_method: passthrough\nbase_model: {a}\ntokenizer_source: union\nslices:\n"
        f"  - sources: [{{model: {a}, layer_range: [0, 3]}}]\n  - sources: [{{model: {b}, layer_range: [1, 3]}}]\n",
        tmp_path / "out",
    )
    written = AutoConfig.from_pretrained(tmp_path / "out")
    assert written.text_config.vocab_size == 41 == len(tiny.read(tmp_path / "out")[embedding])
    assert written.text_config.num_hidden_layers == 5
    with quiet():
        _, report = architectures.load(tmp_path / "out", "gemma3-vision")
    assert not any(report.values()), report


def test_an_adapter_on_a_model_with_another_vocabulary_is_refused_with_the_way_round(models, tmp_path):
    import peft

    base, _ = load(models["b"])
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["lm_head"])).save_pretrained(tmp_path / "lora")
    text = LINEAR.format(a=models["a"], b=f"{models['b']}+{tmp_path / 'lora'}")
    output = merge(text, tmp_path / "out", code=1)
    assert "passthrough" in output
    assert not (tmp_path / "out").exists()
