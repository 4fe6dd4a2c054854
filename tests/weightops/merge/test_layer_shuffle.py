"""Shuffled layers: the drawn file is mergekit's kind, the merge takes each layer whole, bad input is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models as tiny
import yaml
from click.testing import CliRunner
from merge_files import family, theirs

from weightops.cli import main
from weightops.errors import WeightopsError
from weightops.merge.layer_shuffle import shuffled


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("shuffle"), ["a", "b", "c"], layers=6)
    return [str(path) for path in made.values()]


def layers_in(text: str) -> list[tuple[str, int]]:
    """Model and number of each layer of the output."""
    spans = [(s["model"], *s["layer_range"]) for one in yaml.safe_load(text)["slices"] for s in one["sources"]]
    return [(model, layer) for model, first, end in spans for layer in range(first, end)]


def run(out, models, *args):
    named = [word for model in models for word in ("-m", model)]
    return CliRunner().invoke(main, ["layershuffle", str(out), *named, *map(str, args)])


def test_each_layer_is_one_models_and_mergekit_makes_the_same_of_the_printed_file(models, tmp_path):
    out, file = tmp_path / "out", tmp_path / "drawn.yml"
    done = run(out, models, "--seed", 3, "--write-yaml", file)
    assert done.exit_code == 0, done.output
    drawn, tensors = layers_in(file.read_text()), tiny.read(out)
    assert [layer for _, layer in drawn] == list(range(6))
    assert len({model for model, _ in drawn}) > 1
    for number, (model, layer) in enumerate(drawn):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert tiny.same_bytes(tensors[name.format(number)], tiny.read(Path(model))[name.format(layer)])
    other = theirs(file.read_text(), tmp_path / "theirs")
    assert tensors.keys() == other.keys()
    assert all(tiny.same_bytes(tensors[name], other[name]) for name in other)


def test_the_seed_repeats_a_draw_and_weights_count(models):
    texts = [shuffled(models, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert {model for model, _ in layers_in(shuffled(models, [0, 1, 0]))} == {models[1]}
    deep = [layers_in(shuffled(models, [0.5, 1, 0], full_random=True, seed=seed)) for seed in range(20)]
    assert all(sum(model == models[0] for model, _ in drawn) == 3 and len(drawn) == 9 for drawn in deep)
    assert {layer for drawn in deep for model, layer in drawn if model == models[0]} == set(range(6))


def test_dry_run_prints_the_file_and_writes_nothing(models, tmp_path):
    done = run(tmp_path / "out", models, "--full-random", "--print-yaml", "--dry-run", "--dtype", "float16")
    assert done.exit_code == 0, done.output
    assert "merge_method: passthrough" in done.stdout
    assert "dtype: float16" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused(models, tmp_path):
    shallow = family(tmp_path / "shallow", ["s"], layers=2)["s"]
    assert (
        "2 weights for 3 models; give each model one as --weight"
        in run(tmp_path / "o", models, "-w", 1, "-w", 1).stderr
    )
    with pytest.raises(WeightopsError, match="at least 0, not all of them 0"):
        shuffled(models, [0, 0, 0])
    with pytest.raises(WeightopsError, match=r"differ in their number of layers .* full_random=True"):
        shuffled([*models, str(shallow)])
    with pytest.raises(WeightopsError, match="would have 0 layers"):
        shuffled(models, [0.1, 0, 0], full_random=True)
    with pytest.raises(WeightopsError, match="would have 6000"):
        shuffled(models, [1000, 0, 0], full_random=True)
