"""``weightops extract`` from the command line: what is written, what is printed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
from click.testing import CliRunner, Result
from merge_files import quiet

from weightops.cli import main
from weightops.sorted import cut_check


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A llama of four layers."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4}
    return tiny.write(tmp_path_factory.mktemp("models") / "whole", tiny.llama(0, layers=4), config=config)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A model of two layers that transformers can load."""
    with quiet():
        return tiny.transformer(tmp_path_factory.mktemp("real") / "whole", "llama", tied=True)


def test_several_models_at_once(model, tmp_path):
    done = run("extract", model, "--layers", "1,3", "--out", tmp_path / "cut-{layers}", "--json")
    assert done.exit_code == 0, done.output
    written = json.loads(done.stdout)["models"]
    assert [(one["layers"], one["of"]) for one in written] == [([0], 4), ([0, 1, 2], 4)]
    for one, layers in zip(written, (1, 3), strict=True):
        folder = tmp_path / f"cut-{layers}"
        assert one["out"] == str(folder)
        assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == layers
        assert run("verify", folder).exit_code == 0


def test_layers_by_their_numbers_and_what_is_printed(model, tmp_path):
    done = run("extract", model, "--keep", "0,2-3", "--out", tmp_path / "cut")
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'cut'}: 3 of 4 layers (0,2-3)" in done.stdout
    whole, cut = tiny.read(model), tiny.read(tmp_path / "cut")
    for new, old in enumerate((0, 2, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert tiny.same_bytes(cut[name.format(new)], whole[name.format(old)])


def test_verify_compares_with_the_whole_model_before_the_output_gets_its_place(real, tmp_path, monkeypatch):
    with quiet():
        done = run("extract", real, "--layers", 1, "--out", tmp_path / "cut", "--verify", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["models"][0]["difference"] == 0.0
    monkeypatch.setattr(cut_check, "cut_difference", lambda *_, **__: 0.25)
    with quiet():
        done = run("extract", real, "--layers", 1, "--out", tmp_path / "wrong", "--verify")
    assert done.exit_code == 1
    assert "its logits differ from the whole model's at that exit by up to 0.25" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "wrong.differs"]
    assert run("verify", tmp_path / "wrong.differs").exit_code == 0


def test_importance_leaves_out_the_layer_that_changes_least(real, tmp_path):
    """The first layer is made one that adds nothing: its influence is 0, and the second one is kept."""
    idle = tiny.copy(real, tmp_path / "idle")
    tensors = tiny.read(real)
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.0.{part}.weight"].zero_()
    tiny.rewrite(idle, tensors)
    (tmp_path / "rows.jsonl").write_text('{"text": "hello a python process"}\n{"text": "kill a process"}\n')
    options = ["--layers", 1, "--select", "importance", "--out", tmp_path / "cut", "--json"]
    with quiet():
        done = run("extract", idle, *options, "--data", tmp_path / "rows.jsonl")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["models"][0]["layers"] == [1]
    assert result["influences"][0] == pytest.approx(0, abs=1e-6)
    assert result["influences"][1] > 1e-3
    assert run("extract", idle, *options).exit_code == 2
    assert run("extract", idle, "--keep", "0", *options[2:], "--data", tmp_path / "rows.jsonl").exit_code == 2


def test_a_dry_run_writes_nothing(model, tmp_path):
    done = run("extract", model, "--layers", "1,2", "--out", tmp_path / "{layers}", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "1 of 4 layers (0): reads" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = run("extract", model, "--layers", "1", "--out", model, "--dry-run", "--json")
    assert done.exit_code == 1
    assert "inside the input" in json.loads(done.stdout)["models"][0]["problems"][0]


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--layers", "0"], 1, "0 layers of 4 cannot be kept; a cut keeps 1 to 3; choose another number of --layers"),
        (["--layers", "4"], 1, "4 layers of 4"),
        (["--keep", "0-9"], 1, "layer 4: the model has 4 layers, numbered 0 to 3"),
        (["--keep", "2,1"], 1, "layer 1 after layer 2: the numbers must rise"),
        (["--keep", "0-3"], 1, "all 4 layers are kept"),
        (["--layers", "1,2"], 1, "2 models cannot be written to one folder; put {layers} into --out"),
        (["--layers", "1,x"], 2, "is not a number of layers"),
        (["--layers", "-1"], 2, "is not a number of layers"),
        (["--keep", "3-1"], 2, "is not a layer or a run of layers"),
        (["--keep", "0-99999999999"], 2, "is not a layer or a run of layers"),
        ([], 2, "name either --layers or --keep"),
        (["--layers", "1", "--keep", "0"], 2, "name either --layers or --keep"),
    ],
)
def test_wrong_choices(model, tmp_path, options, code, problem):
    done = run("extract", model, *options, "--out", tmp_path / "out")
    assert (done.exit_code, problem in done.stderr) == (code, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_model_is_written_where_one_of_them_cannot_be(model, tmp_path):
    (tmp_path / "2").mkdir()
    done = run("extract", model, "--layers", "1,2", "--out", tmp_path / "{layers}")
    assert done.exit_code == 1
    assert "exists already" in done.stderr
    assert not (tmp_path / "1").exists()
