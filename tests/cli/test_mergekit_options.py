"""The command lines that people paste: mergekit-yaml's options are used, noted as without effect, or refused."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import click
import pytest
import tiny_models as tiny
from click.testing import CliRunner
from merge_files import family

from weightops.cli import main
from weightops.cli.merge import command
from weightops.cli.mergekit_options import OPTIONS
from weightops.cli.soup import command as soup


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A merge that draws at random."""
    root = tmp_path_factory.mktemp("merge")
    made = family(root, ["base", "a", "b"], layers=2)
    models = "".join(f"  - {{model: {made[name]}, parameters: {{weight: 0.5, density: 0.5}}}}\n" for name in "ab")
    (root / "della.yml").write_text(f"merge_method: della\nbase_model: {made['base']}\nmodels:\n{models}")
    return root / "della.yml"


def run(file: Path, out: Path, *options: str, code: int = 0):
    done = CliRunner().invoke(main, ["merge", str(file), str(out), *options])
    assert done.exit_code == code, done.output
    return done


def test_every_option_of_mergekit_yaml_is_known():
    theirs = {form for p in pytest.importorskip("mergekit.scripts.run_yaml").main.params for form in forms(p)}
    ours = {form for p in command.params for form in forms(p)}
    assert {form for form in theirs if form.startswith("-")} <= ours
    assert all(p.hidden for p in command.params if p.name.startswith("mergekit_"))


def test_every_option_of_mergekit_evolve_is_known():
    spec = importlib.util.find_spec("mergekit")
    if spec is None or spec.origin is None:
        pytest.skip("mergekit is not installed")
    source = (Path(spec.origin).parent / "scripts" / "evolve.py").read_text()  # importing it needs Ray and cma
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    options = [call for call in calls if ast.unparse(call.func) == "click.option"]
    theirs = {name for call in options for arg in call.args for name in ast.literal_eval(arg).split("/")}
    with click.Context(soup) as context:
        evolve = soup.get_command(context, "evolve")
    ours = {form for p in evolve.params for form in forms(p)}
    assert len(theirs) > 20
    assert {name for name in theirs if name.startswith("-")} <= ours
    assert all(p.hidden for p in evolve.params if p.name.startswith("mergekit_"))


def forms(parameter) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]


def test_a_pasted_command_line_runs_and_says_what_had_no_effect(file, tmp_path):
    done = run(
        file, tmp_path / "pasted", "--cuda", "--lazy-unpickle", "--allow-crimes", "--low-cpu-memory", "--copy-tokenizer",
        "--out-shard-size", "5B", "--no-write-model-card", "-j", "2", "--random-seed", "3", "--no-multi-gpu", "-v",
        "--lora-merge-cache", "/tmp", "--transformers-cache", str(tmp_path), "--write-threads", "3",
    )  # fmt: skip
    notes = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("note: --") or "note: -v" in line]
    assert notes == [
        "--allow-crimes", "--lora-merge-cache", "--low-cpu-memory", "--lazy-unpickle", "--no-write-model-card", "-v",
        "--write-threads",
    ]  # fmt: skip
    assert "the device 'cuda' is not used" in done.stderr
    run(file, tmp_path / "ours", "--seed", "3")
    run(file, tmp_path / "other")
    written = (tmp_path / name / "model.safetensors" for name in ("pasted", "ours", "other"))
    pasted, same, other = (path.read_bytes() for path in written)
    assert pasted == same != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--unsafe-truncate-embeddings"],
            "it cuts off tokens; tokenizer_source in the file aligns them; leave it out",
        ),
        (["--no-safe-serialization"], "--no-safe-serialization: weightops writes only safetensors"),
        (["--seed", "1", "--random-seed", "2"], "--random-seed and --seed differ; give one of them"),
        (["--device", "cpu", "--cuda"], "--cuda and --device differ"),
        (["--out-shard-size", "5GB"], "'5GB' is not a size of mergekit; write for example 5B, or --shard-size 5GB"),
        (["--out-shard-size", "0"], "is not a size of mergekit"),
        (["--shard-size", "5B"], "'5B' would be 5 bytes; write 5GB"),
        (["-j", "0"], "0 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_meant_is_a_wrong_command_line(file, tmp_path, options, message):
    assert message in run(file, tmp_path / "out", *options, code=2).stderr
    assert not (tmp_path / "out").exists()


def test_the_shards_are_cut_where_mergekit_cuts_them(file, tmp_path):
    # Its help says parameters; it compares the sum of the tensors' bytes.
    from mergekit.io.tensor_writer import TensorWriter

    run(file, tmp_path / "out", "--out-shard-size", "9k")
    writer = TensorWriter(str(tmp_path / "theirs"), max_shard_size=9000)
    for name, tensor in tiny.read(tmp_path / "out").items():
        writer.save_tensor(name, tensor)
    writer.finalize()
    counts = [len(list((tmp_path / name).glob("*.safetensors"))) for name in ("out", "theirs")]
    assert counts[0] == counts[1] > 2


def test_the_help_lists_them_in_one_paragraph():
    shown = CliRunner().invoke(main, ["merge", "--help"]).output
    listed = " ".join(shown.split("The options of mergekit-yaml are accepted too.")[1].split())
    assert all(option.name in listed for option in OPTIONS if option.no_effect or option.sets)
    assert "Refused: --unsafe-truncate-embeddings, --no-safe-serialization." in listed
    assert "--lazy-unpickle" not in shown.split("Options:")[1].split("The options of mergekit-yaml")[0]
