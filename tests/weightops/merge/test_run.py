"""Running a merge file: the same bytes however it is run or interrupted, documents in their order, nothing left over."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from killed_writing import killed_after
from merge_files import config_of, family, merge, ours

from weightops.errors import WeightopsError
from weightops.merge import run
from weightops.merge.build import Options
from weightops.merge.config import reading
from weightops.output.provenance import verify

METHODS = {
    "linear": "",
    "slerp": "t: 0.3",
    "karcher": "",
    "ties": "density: 0.4",
    "dare_ties": "density: 0.4",
    "della": "density: 0.5",
    "sce": "select_topk: 0.3",
    "model_stock": "",
    "tsv_m": "",
    "breadcrumbs": "density: 0.4, gamma: 0.1",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """bf16 models with a matrix of two blocks (1024 x 300), so that slices and passes have something to do."""
    root = tmp_path_factory.mktemp("models")
    base = tiny.llama(0, vocab=1024, hidden=300, layers=1, dtype=torch.bfloat16)
    made = {"base": base, "a": tiny.perturbed(base, 1), "b": tiny.perturbed(base, 2)}
    config = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 1024, "dtype": "bfloat16"}
    return {name: tiny.write(root / name, tensors, config=config) for name, tensors in made.items()}


def file_of(method: str, models: dict[str, Path], parameters: str) -> str:
    base = f"base_model: {models['base']}\n" if method not in ("linear", "karcher") else ""
    names = ["a"] if method == "slerp" else ["a", "b"]
    listed = "".join(f"  - model: {models[name]}\n" for name in names)
    return f"merge_method: {method}\n{base}models:\n{listed}parameters: {{{parameters}}}\n"


# --- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_memory_and_shards_do_not_change_a_byte(models, tmp_path, method):
    text = file_of(method, models, METHODS[method])
    merge(text, tmp_path / "one", threads=1, memory=1 << 30)
    merge(text, tmp_path / "two", threads=3, memory=40 << 20)
    merge(text, tmp_path / "three", threads=2, shard_size=1 << 20)
    one, two, three = (tiny.read(tmp_path / name) for name in ("one", "two", "three"))
    assert one.keys() == two.keys() == three.keys()
    for name, value in one.items():
        assert tiny.same_bytes(two[name], value), name
        assert tiny.same_bytes(three[name], value), name
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "two")  # the record too
    assert verify(tmp_path / "one") == verify(tmp_path / "three") == []
    assert len(list((tmp_path / "three").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "model_stock"])
def test_the_threads_that_torch_may_start_do_not_change_a_byte(models, tmp_path, method):
    text = file_of(method, models, "")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = ours(text, tmp_path / "two")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    one = ours(text, tmp_path / "one")
    assert all(tiny.same_bytes(two[name], value) for name, value in one.items())


PROGRAM = """
import sys
from pathlib import Path
from weightops.merge import run
from weightops.merge.build import Options
run.merge(run.read(Path(sys.argv[1])), Path(sys.argv[2]), Options(), threads=2, progress=False)
"""


@pytest.mark.parametrize("method", ["ties", "slerp", "dare_ties"])
def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_bytes(models, tmp_path, method, monkeypatch):
    text = file_of(method, models, METHODS[method])
    merge(text, tmp_path / "whole")
    file = tmp_path / "killed.yml"
    file.write_text(text)
    killed_after(4, PROGRAM, file, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / ".killed.weightops").exists()
    from weightops.engine import merging

    computed, compute = [], merging.run
    monkeypatch.setattr(
        merging, "run", lambda job, *rest, **more: computed.append(job.name) or compute(job, *rest, **more)
    )
    merge(text, tmp_path / "killed", threads=1, memory=40 << 20)
    assert tiny.files_of(tmp_path / "killed") == tiny.files_of(tmp_path / "whole")
    assert len(computed) == len(tiny.read(tmp_path / "whole")) - 4  # what was done is not done again
    assert not list(tmp_path.glob(".*"))


STEPS = """\
name: first
merge_method: linear
models: [{{model: {a}}}, {{model: {b}}}]
---
merge_method: ties
base_model: {base}
models: [{{model: first}}, {{model: {b}}}]
parameters: {{density: 0.5}}
"""


def test_steps_that_a_killed_run_finished_are_used_again(models, tmp_path):
    text, file = STEPS.format(**models), tmp_path / "killed.yml"
    merge(text, tmp_path / "whole")
    file.write_text(text)
    count = len(tiny.read(tmp_path / "whole"))
    killed_after(
        count + 12, PROGRAM, file, tmp_path / "killed"
    )  # in the second document: the first is written in more slices
    step = tmp_path / ".killed.steps" / "first"
    assert verify(step) == []
    written = (step / "model.safetensors").stat().st_ino
    watched: list[int] = []
    real = run.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run,
            "save",
            lambda *given, **more: watched.append((step / "model.safetensors").stat().st_ino) or real(*given, **more),
        )
        merge(text, tmp_path / "killed")
    assert watched == [written]  # one document was saved, and the step was still the old file
    whole, killed = tiny.read(tmp_path / "whole"), tiny.read(tmp_path / "killed")
    assert all(tiny.same_bytes(killed[name], value) for name, value in whole.items())
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "whole.yml", "killed", "killed.yml"}


def test_a_step_is_made_anew_when_a_model_has_changed_since(tmp_path):
    models = family(tmp_path / "models", ["base", "a", "b"])
    text, file = STEPS.format(**models), tmp_path / "killed.yml"
    file.write_text(text)
    count = len(tiny.read(models["base"]))
    killed_after(count + 1, PROGRAM, file, tmp_path / "killed")
    assert (tmp_path / ".killed.steps" / "first").exists()
    tiny.rewrite(models["a"], tiny.perturbed(tiny.read(models["a"]), 7))
    merge(text, tmp_path / "fresh")
    recipe = run.read(file)
    run.merge(recipe, tmp_path / "killed", Options(), overwrite=True, progress=False)
    fresh, killed = tiny.read(tmp_path / "fresh"), tiny.read(tmp_path / "killed")
    assert all(tiny.same_bytes(killed[name], value) for name, value in fresh.items())


# --- documents -------------------------------------------------------------------------------------------------------


def test_a_step_is_what_the_document_alone_gives(tmp_path):
    models = family(tmp_path / "models", ["base", "a", "b"])
    text = STEPS.format(**models)
    whole = ours(text, tmp_path / "whole")
    alone = text.split("---")[0].removeprefix("name: first\n")
    ours(alone, tmp_path / "first")
    by_hand = ours(text.split("---\n")[1].replace("first", str(tmp_path / "first")), tmp_path / "by-hand")
    assert all(tiny.same_bytes(whole[name], value) for name, value in by_hand.items())
    assert config_of(tmp_path / "whole") == config_of(tmp_path / "by-hand")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{base}", "/nowhere/base", "/nowhere/base: no such file or folder"),
        ("density: 0.5", "density: 1.5", "density"),
        ("model: first}}, {{model: {b}}}", "model: first}}, {{model: {other}}}", "must share one architecture"),
    ],
)
def test_what_is_wrong_with_a_later_document_leaves_nothing_of_the_earlier_ones(tmp_path, old, new, message):
    models = family(tmp_path / "models", ["base", "a", "b"])
    other = tiny.llama(0, layers=4)
    other.pop("model.layers.2.mlp.up_proj.weight")
    models["other"] = tiny.write(tmp_path / "models" / "other", other)
    with pytest.raises(WeightopsError, match=message):
        merge(STEPS.replace(old, new).format(**models), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"models", "out.yml"}


def test_an_output_that_exists_is_said_before_any_step_runs(tmp_path, monkeypatch):
    models = family(tmp_path / "models", ["base", "a", "b"])
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(run, "save", lambda *given, **more: pytest.fail("a step ran"))
    with pytest.raises(WeightopsError, match="exists already"):
        merge(STEPS.format(**models), tmp_path / "out")


def test_models_that_cannot_be_opened_are_all_said(tmp_path):
    text = STEPS.format(base="/nowhere/1", a="/nowhere/2", b="/nowhere/3")
    with pytest.raises(WeightopsError) as caught:
        merge(text, tmp_path / "out")
    assert len(caught.value.problems) == 3
    assert all(f"/nowhere/{i}: no such file or folder" in str(caught.value) for i in (1, 2, 3))


def test_the_record_and_the_card_tell_how_to_make_it_again(tmp_path):
    models = family(tmp_path / "models", ["base", "a", "b"])
    text = file_of("ties", models, "density: 0.5")
    merge(text, tmp_path / "out", seed=5)
    recipe = tiny.json.loads((tmp_path / "out" / "weightops.json").read_text())
    assert recipe["recipe"] == {"kind": "merge", "config": text, "document": None, "seed": 5}
    assert [source["name"] for source in recipe["sources"]] == [str(models[name]) for name in ("base", "a", "b")]
    assert len({source["content"] for source in recipe["sources"]}) == 3
    assert all(source["tensors"] == len(tiny.read(models["base"])) for source in recipe["sources"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert text.strip() in card
    assert "2306.01708" in card
    assert "\n- merge\n" in card or "- mergekit" in card or "- ties" in card


def test_a_model_is_opened_once_however_often_a_file_names_it(tmp_path, headers_read):
    models = family(tmp_path / "models", ["base", "a", "b"])
    merge(STEPS.format(**models), tmp_path / "out")
    counted = {file.parent.name: times for file, times in headers_read.items() if file.is_relative_to(tmp_path)}
    assert counted == {"base": 1, "a": 1, "b": 1, "first": 1}


def test_the_text_recorded_is_the_text_parsed(tmp_path, monkeypatch):
    """The file is read once: what another program writes into it meanwhile is neither run nor recorded."""
    models = family(tmp_path / "models", ["base", "a", "b"])
    text = file_of("ties", models, "density: 0.5")
    file = tmp_path / "merge.yml"
    file.write_text(text)
    read_small, reads = reading.read_small, []

    def counting(path):
        reads.append(path)
        return read_small(path)

    monkeypatch.setattr(reading, "read_small", counting)
    assert run.read(file).text == text
    assert reads == [file]


def test_a_model_that_changes_between_two_documents_ends_the_run(tmp_path, monkeypatch):
    models = family(tmp_path / "models", ["base", "a", "b"])
    save = run.save

    def saving(*given, **more):
        saved = save(*given, **more)
        tiny.rewrite(models["b"], tiny.perturbed(tiny.read(models["base"]), 9))
        return saved

    monkeypatch.setattr(run, "save", saving)
    with pytest.raises(WeightopsError, match=r"b/model.safetensors: changed while the merge ran; run the merge again"):
        merge(STEPS.format(**models), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"models", "out.yml"}


@pytest.mark.parametrize("name", ["{notes}", "../../notes"])
def test_a_name_that_is_a_path_replaces_nothing(tmp_path, name):
    models, notes = family(tmp_path / "models", ["base", "a", "b"]), tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("kept")
    step = name.format(notes=notes)
    text = STEPS.format(**models).replace("first", step)
    (tmp_path / "in").mkdir()
    with pytest.raises(WeightopsError, match=r"out.yml:1: name .* is used as a folder's name"):
        merge(text, tmp_path / "in" / "out")
    assert [file.name for file in notes.iterdir()] == ["diary.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"models", "notes", "in"}


# --- two runs at once ------------------------------------------------------------------------------------------------

PAUSED = """
import sys, time
from pathlib import Path
from weightops.merge import run
from weightops.merge.build import Options

file, out, marks = map(Path, sys.argv[1:])
save = run.save


def saving(plan, package, place, **more):
    if place == out:  # the steps are finished
        (marks / "paused").touch()
        while not (marks / "go").exists():
            time.sleep(0.02)
    return save(plan, package, place, **more)


run.save = saving
run.merge(run.read(file), out, Options(), progress=False)
"""


@pytest.mark.parametrize("documents", ["the same file", "one document"])
def test_a_second_run_to_the_same_output_is_refused_and_touches_nothing(tmp_path, documents):
    models = family(tmp_path / "models", ["base", "a", "b"])
    text, file, marks = STEPS.format(**models), tmp_path / "steps.yml", tmp_path / "marks"
    file.write_text(text)
    marks.mkdir()
    second = text if documents == "the same file" else file_of("ties", models, "density: 0.5")
    first = subprocess.Popen([sys.executable, "-c", PAUSED, str(file), str(tmp_path / "out"), str(marks)])
    try:
        while not (marks / "paused").exists():
            assert first.poll() is None
            time.sleep(0.02)
        kept = tiny.files_of(tmp_path / ".out.steps")
        assert any(name.endswith("first/model.safetensors") for name in map(str, kept))
        (tmp_path / "second.yml").write_text(second)
        command = [sys.executable, "-c", "from weightops.cli import main; main()", "merge"]
        command += [str(tmp_path / "second.yml"), str(tmp_path / "out")]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stderr.count("error: ")) == (1, 1), refused.stderr
        assert "another process is writing it" in refused.stderr
        assert tiny.files_of(tmp_path / ".out.steps") == kept
        (marks / "go").touch()
        assert first.wait(120) == 0
    finally:
        first.kill()
        first.wait()
    assert verify(tmp_path / "out") == []
    assert {path.name for path in tmp_path.iterdir()} == {"models", "marks", "steps.yml", "second.yml", "out"}


def test_a_steps_folder_that_is_a_link_is_refused(tmp_path):
    models = family(tmp_path / "models", ["base", "a", "b"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.steps").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightopsError, match=r"\.out\.steps: is a link"):
        merge(STEPS.format(**models), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_output_that_may_not_be_replaced_is_said_before_any_step_runs(tmp_path, monkeypatch):
    models = family(tmp_path / "models", ["base", "a", "b"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.md").write_text("mine")
    file = tmp_path / "steps.yml"
    file.write_text(STEPS.format(**models))
    monkeypatch.setattr(run, "save", lambda *given, **more: pytest.fail("a step ran"))
    with pytest.raises(WeightopsError, match=r"notes\.md"):
        run.merge(run.read(file), tmp_path / "out", Options(), overwrite=True, progress=False)
    with pytest.raises(WeightopsError, match="would be inside the input"):
        run.merge(run.read(file), models["a"] / "merged", Options(), progress=False)


def test_steps_are_kept_each_in_its_folder_and_used_by_the_next_run(models, tmp_path):
    text, file, steps = STEPS.format(**models), tmp_path / "steps.yml", tmp_path / "kept" / "steps"
    file.write_text(text)
    recipe = run.read(file)
    names = sorted(str(config.name) for config in recipe.steps)
    run.merge(recipe, tmp_path / "out", Options(), progress=False, keep_steps=steps)
    assert sorted(path.name for path in steps.iterdir()) == names
    assert all(verify(steps / name) == [] for name in names)
    assert all((steps / name / "mergekit_config.yml").read_text() == text for name in names)
    assert run.kept_results(recipe, steps) == {name: steps / name for name in names}
    before = tiny.files_of(steps)
    again = run.merge(recipe, tmp_path / "again", Options(), progress=False, keep_steps=steps)
    assert tiny.files_of(steps) == before, "a kept result was made again"
    assert tiny.read(again.folder).keys() == tiny.read(tmp_path / "out").keys()
    with pytest.raises(WeightopsError, match="exists"):  # another recipe: its results would replace these
        run.merge(recipe, tmp_path / "other", Options(seed=1), progress=False, keep_steps=steps)
    assert tiny.files_of(steps) == before


@pytest.mark.parametrize("place", ["first", "first/inside", "."])
def test_the_output_and_kept_steps_must_lie_apart(models, tmp_path, place):
    file = tmp_path / "steps.yml"
    file.write_text(STEPS.format(**models))
    with pytest.raises(WeightopsError, match="must lie apart; choose another keep_steps"):
        run.merge(run.read(file), tmp_path / "steps" / place, Options(), keep_steps=tmp_path / "steps")
    assert not (tmp_path / "steps").exists()


def test_the_merge_file_lies_beside_the_weights_byte_for_byte_and_is_verified(models, tmp_path):
    text = f"# what I merged: é\r\n{file_of('linear', models, 'weight: 1')}\n"
    (tmp_path / "merge.yml").write_bytes(text.encode())
    run.merge(run.read(tmp_path / "merge.yml"), tmp_path / "out", Options(), progress=False)
    written = tmp_path / "out" / "mergekit_config.yml"
    assert written.read_bytes() == text.encode()
    assert verify(tmp_path / "out") == []
    written.write_text("changed")
    assert any("mergekit_config.yml: has changed" in problem for problem in verify(tmp_path / "out"))
