"""A merge by data as a whole: what is written, resumed, refused, and how much memory it takes."""

import json
import weakref

import pytest
import tiny_architectures
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import weightops as wo
from weightops.data_merging import data_merge, fisher, regmean
from weightops.errors import WeightopsError
from weightops.layerwise.layered_model import LayeredModel
from weightops.output.provenance import verify
from weightops.rows.row import Row

ROWS = [Row.of(f"line {n}", {"text": " ".join(tiny_models.WORDS[3 + n % 5 :])}) for n in range(6)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two llamas with tied embeddings, fp32."""
    folder = tmp_path_factory.mktemp("data-merge")
    return [tiny_models.transformer(folder / str(seed), "llama", tied=True, seed=seed) for seed in (0, 1)]


def merge(models, data=(ROWS, ROWS[:3]), **settings):
    return wo.merge_with_data(models, data, **{"rows": 6, **settings})


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_the_output_is_a_model_that_verify_accepts_and_says_how_it_was_made(method, pair, tmp_path):
    out = merge(pair, method=method, weights=[3, 1]).save(tmp_path / "out", progress=False)
    assert verify(out) == []
    record = json.loads((out / "weightops.json").read_text())
    assert record["recipe"]["shares"] == [0.75, 0.25]
    assert [sample["rows"] for sample in record["recipe"]["data"]] == [6, 3]
    assert len(record["sources"]) == 2
    assert data_merge.PAPERS[method].arxiv in (out / "README.md").read_text()
    merged, first, other = (load_file(folder / "model.safetensors") for folder in (out, *pair))
    assert merged.keys() == first.keys()
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.allclose(merged[name], 0.75 * first[name] + 0.25 * other[name], atol=1e-4)
    if method == "regmean":
        name = "model.embed_tokens.weight"
        assert torch.allclose(merged[name], 0.75 * first[name] + 0.25 * other[name], atol=1e-6)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_a_run_that_was_interrupted_resumes_after_the_parts_it_wrote_and_ends_in_the_same_bytes(
    method, pair, tmp_path, monkeypatch
):
    whole = merge(pair, method=method).save(tmp_path / "whole", progress=False)
    solved = {"regmean": (regmean.RegressionSums, "solved"), "fisher": (fisher.FisherSums, "merged")}[method]
    solve, calls = getattr(*solved), []

    def counted(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(self)

    monkeypatch.setattr(*solved, counted)
    with pytest.raises(KeyboardInterrupt):
        merge(pair, method=method).save(tmp_path / "out", progress=False)
    out = merge(pair, method=method).save(tmp_path / "out", progress=False)
    assert len(calls) == 3 + 2  # of four parts two were written
    assert tiny_models.files_of(out)["model.safetensors"] == tiny_models.files_of(whole)["model.safetensors"]
    assert verify(out) == []


def test_an_adapter_on_a_base_merges_as_the_model_that_it_makes(pair, tmp_path):
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]
    adapter = tiny_models.lora(tmp_path / "adapter", load_file(pair[0] / "model.safetensors"), names, seed=1)
    written = wo.open(f"{pair[0]}+{adapter}").save(tmp_path / "written", progress=False)
    one = merge([f"{pair[0]}+{adapter}", pair[1]]).save(tmp_path / "one", progress=False)
    other = merge([written, pair[1]]).save(tmp_path / "other", progress=False)
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_random_tokens_take_the_place_of_data_for_fisher_only(pair, tmp_path):
    out = merge(pair, None, method="fisher", random=True, tokens=9).save(tmp_path / "out", progress=False)
    recipe = json.loads((out / "weightops.json").read_text())["recipe"]
    assert [sample["tokens"] for sample in recipe["data"]] == [54, 54]
    assert "2603.21705" in (out / "README.md").read_text()
    with pytest.raises(WeightopsError, match="random tokens have no meaning for regmean"):
        merge(pair, None, random=True)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "regmeen"}, "unknown method 'regmeen'; available: regmean, fisher"),
        ({"scale": 1.5}, r"scale must be in \[0, 1\]"),
        ({"weights": [1]}, "weights must be 2 numbers more than 0"),
        ({"weights": [1, 0]}, "weights must be 2 numbers more than 0"),
        ({"weights": [1, float("nan")]}, "weights must be 2 numbers more than 0"),
        ({"rows": 0}, "rows must be a whole number of at least 1"),
        ({"data": [ROWS]}, "data for 1 of 2 models; each needs its own"),
        ({"data": None}, "no data for the models"),
        ({"data": [ROWS, []]}, "1: no rows of data for it"),
        ({"data": [ROWS, [Row.of("line 7", {"label": 1})]]}, "line 7: needs messages"),
        ({"data": [ROWS, "absent.jsonl"]}, "absent.jsonl: cannot be read"),
    ],
)
def test_wrong_settings_and_data_are_lines(settings, problem, pair):
    with pytest.raises(WeightopsError, match=problem):
        merge(pair, **{"data": (ROWS, ROWS), **settings})


def test_models_of_other_shapes_are_refused(pair, tmp_path):
    larger = tiny_models.transformer(tmp_path / "larger", "llama", tied=True, vocab=32)
    other = tiny_models.transformer(tmp_path / "other", "qwen3", tied=True)
    for model, problem in ((larger, "embed_tokens.weight: shape"), (other, "only in")):
        with pytest.raises(WeightopsError, match=f"{problem}.*name models of one architecture"):
            merge([pair[0], model])


def test_activations_that_are_not_finite_name_the_model_and_leave_no_output(pair, tmp_path):
    broken = tiny_models.copy(pair[1], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    for name in ("up_proj", "down_proj"):
        tensors[f"model.layers.1.mlp.{name}.weight"] *= 1e30
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for method in ("regmean", "fisher"):
        with pytest.raises(WeightopsError, match="broken: the output of layer 1 is not finite"):
            merge([pair[0], broken], method=method).save(tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_sample_that_was_cut_or_is_short_is_a_note_of_the_plan(pair):
    notes = merge(pair, rows=50, tokens=4).plan().notes
    assert any("6 of 6 rows are longer than 4 tokens" in note for note in notes)
    assert any("has 3 rows, fewer than the 50 wanted" in note for note in notes)
    assert any("the head is the token embedding" in note for note in notes)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_nothing_of_a_part_stays_in_memory_when_the_next_one_is_loaded(method, pair, tmp_path, monkeypatch):
    """So the peak is that of one part, whatever the depth."""
    held, parts = [], []
    kind, solve = {"regmean": (regmean.RegressionSums, "solved"), "fisher": (fisher.FisherSums, "merged")}[method]
    add, finish, load = kind.add, getattr(kind, solve), LayeredModel.part

    def added(self, parameters, *rest):
        held.extend(weakref.ref(weights) for weights in parameters.values())
        return add(self, parameters, *rest)

    def finished(self):
        merged = finish(self)
        held.extend(weakref.ref(tensor) for tensor in merged.values())
        return merged

    def loading(self, number):
        if parts[-1:] != [number]:
            assert [ref for ref in held if ref() is not None] == []
            parts.append(number)
        return load(self, number)

    monkeypatch.setattr(kind, "add", added)
    monkeypatch.setattr(kind, solve, finished)
    monkeypatch.setattr(LayeredModel, "part", loading)
    merge(pair, method=method).save(tmp_path / "out", progress=False)
    assert parts[-4:] == ([0, 1, 2, 3] if method == "regmean" else [3, 2, 1, 0])
    assert len(held) == 3 * 20  # every weight of two models and of the result


def test_the_stated_memory_is_of_one_part_whatever_the_depth(tmp_path):
    def peaks(**shape):
        folders = tiny_architectures.save(tmp_path / str(len(list(tmp_path.iterdir()))), "llama-tied", [0, 1], **shape)
        for folder in folders:
            tiny_models.tokenizer(folder)
        return [merge(folders, method=method).peak_bytes(memory=0) for method in ("regmean", "fisher")]

    assert peaks(num_hidden_layers=2) == peaks(num_hidden_layers=6)
    assert all(wide > 2 * narrow for narrow, wide in zip(peaks(), peaks(intermediate_size=128), strict=True))
