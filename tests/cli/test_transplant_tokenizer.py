"""``weightops transplant-tokenizer`` from the command line: what is written, what is printed, what is refused."""

import json

import pytest
import tiny_models as tiny
from click.testing import CliRunner

from weightops.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model and a donor, each with words of its own."""
    folder = tmp_path_factory.mktemp("transplant")
    made = [tiny.transformer(folder / name, "llama", tied=False, seed=n) for n, name in enumerate(("model", "donor"))]
    tiny.tokenizer(made[1], [*tiny.WORDS, "new", "words"])
    return [str(path) for path in made]


def run(*args):
    return CliRunner().invoke(main, ["transplant-tokenizer", *map(str, args)])


def test_it_writes_a_model_and_says_what_to_do_next(models, tmp_path):
    out = tmp_path / "out"
    dry = run(*models, out, "-k", 5, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "lm_head.weight [15, 16]" in dry.stdout
    assert "13 of the 15 tokens are the model's own; 2 rows are made by omp" in dry.stderr
    assert not out.exists()
    done = run(*models, out, "-k", 5)
    assert done.exit_code == 0, done.output
    assert f"next: weightops verify {out}" in done.stderr
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0
    again = run(*models, tmp_path / "again", "-k", 5, "--json", "--threads", 1)
    assert json.loads(again.stdout) | {"out": ""} == {"out": "", "rows": 15, "kept": 13, "made": 2, "without_source": 0}
    assert tiny.files_of(tmp_path / "again")["model.safetensors"] == tiny.files_of(out)["model.safetensors"]


def test_too_few_common_tokens_name_the_option(models, tmp_path):
    done = run(*models, tmp_path / "out")
    assert done.exit_code == 1
    assert "13 tokens in common, fewer than the 64 to make a row of; give a smaller -k, or choose another --method" in (
        done.stderr
    )
    assert list(tmp_path.iterdir()) == []
