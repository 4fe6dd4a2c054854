"""``weightops moe`` from the command line: what is written, what is printed, what is refused."""

import json

import pytest
import tiny_models as tiny
from click.testing import CliRunner
from merge_files import family

from weightops.cli import main


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file for two experts."""
    folder = tmp_path_factory.mktemp("moe")
    models = family(folder, ["base", "a", "b"], layers=2)
    tiny.tokenizer(models["base"])
    file = folder / "experts.yml"
    file.write_text(
        f"base_model: {models['base']}\nexperts:\n"
        f"  - {{source_model: {models['a']}, positive_prompts: [hello user, a python]}}\n"
        f"  - {{source_model: {models['b']}, positive_prompts: [kill]}}\n"
    )
    return file


def run(*args):
    return CliRunner().invoke(main, ["moe", *map(str, args)])


def test_it_writes_a_model_and_says_what_to_do_next(config, tmp_path):
    out = tmp_path / "out"
    dry = run(config, out, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "routers of 2 rows, from 3 prompts" in dry.stdout
    assert not out.exists()
    done = run(config, out, "--memory", "20MiB", "--threads", 2)
    assert done.exit_code == 0, done.output
    assert f"next: weightops verify {out}" in done.stderr
    assert "the output is a Mixtral of 2 experts" in done.stderr
    assert (out / "mergekit_moe_config.yml").read_text() == config.read_text()
    assert json.loads((out / "weightops.json").read_text())["recipe"]["architecture"] == "Mixtral"
    again = run(config, tmp_path / "again", "--json")
    assert json.loads(again.stdout)["tensors"] == len(tiny.read(out))
    assert tiny.files_of(tmp_path / "again")["model.safetensors"] == tiny.files_of(out)["model.safetensors"]


def test_a_file_for_another_command_names_that_command(config, tmp_path):
    merged = CliRunner().invoke(main, ["merge", str(config), str(tmp_path / "out")])
    assert merged.exit_code == 1
    assert "'experts' belongs to a file for mergekit-moe; run it with weightops moe" in merged.stderr
    other = tmp_path / "ties.yml"
    other.write_text("merge_method: ties\nmodels: []\n")
    assert "this is a merge file; run it with weightops merge" in run(other, tmp_path / "out").stderr
    assert run(tmp_path / "absent.yml", tmp_path / "out").stderr.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["ties.yml"]
