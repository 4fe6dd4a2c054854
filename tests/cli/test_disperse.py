"""``weightops disperse``: files of rows in, a folder of parts out."""

import gzip
import json
from pathlib import Path

import pytest
import tiny_models as tiny
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_encoder import write_encoder

from weightops.cli import main
from weightops.recipes.parts import parts_folder
from weightops.recipes.parts.disperse import Dispersal
from weightops.recipes.parts.parts_folder import disperse_files
from weightops.recipes.parts.row_fields import normalised


def run(*args, code=0):
    result = CliRunner().invoke(main, ["disperse", *map(str, args)])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"what is {n}?", "completion": f"red {'blue ' * n}", "task": "ab"[n % 2]} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines_of(folder):
    return [file.read_bytes().splitlines() for file in sorted(folder.glob("part-*.jsonl"))]


RECORD = st.fixed_dictionaries(
    {
        "text": st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        "n": st.integers() | st.floats(),
    }
)


@given(st.lists(RECORD, min_size=6, max_size=12, unique_by=lambda record: record["n"]), st.booleans(), st.booleans(),
       st.sampled_from([b"\n", b"\r\n"]))  # fmt: skip
def test_together_the_parts_are_the_lines_of_the_file_byte_for_byte(tmp_path_factory, records, spaced, marked, ending):
    folder = tmp_path_factory.mktemp("law")
    assume(len({normalised(record["text"]) for record in records}) >= 2)
    lines = [json.dumps(record, ensure_ascii=spaced).encode() for record in records]
    lines = [b" " * spaced + line.replace(b'": ', b'" :  ') for line in lines]
    (folder / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" * marked + ending.join(lines))
    disperse_files([folder / "rows.jsonl"], folder / "parts", Dispersal(2))
    written = [
        line for file in sorted((folder / "parts").glob("part-*")) for line in file.read_bytes().split(b"\n")[:-1]
    ]
    assert sorted(written) == sorted(lines)


def test_a_folder_of_parts_with_its_report(data, tmp_path):
    done = run(data, "--parts", 3, "--out", tmp_path / "parts")
    assert "wrote" in done.stdout
    assert sorted(file.name for file in (tmp_path / "parts").iterdir()) == [
        "part-0.jsonl", "part-1.jsonl", "part-2.jsonl", "report.json",
    ]  # fmt: skip
    report = json.loads((tmp_path / "parts" / "report.json").read_text())
    assert [part["rows"] for part in report["parts"]] == [4, 4, 4]
    assert report["dispersal"]["method"] == {"kind": "by_random"}
    assert sorted(line for part in lines_of(tmp_path / "parts") for line in part) == sorted(
        data.read_bytes().splitlines()
    )
    assert json.loads(run(data, "--parts", 3, "--out", tmp_path / "again", "--json").stdout) == report
    assert tiny.files_of(tmp_path / "again") == tiny.files_of(tmp_path / "parts")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_with_an_encoder_there_are_nearest_examples_and_a_picture(data, tmp_path):
    encoder = write_encoder(tmp_path / "encoder", "red blue")
    args = [data, "--parts", 2, "--by", "kmeans", "--balanced", "--set", "alike=1", "--embed", encoder]
    refused = run(*args, "--out", tmp_path / "parts", code=1).stderr
    assert "unknown key 'alike'; available: balanced" in refused
    args = [each for each in args if each not in ("--set", "alike=1")]
    done = run(*args, "--out", tmp_path / "parts")
    assert "part 1, near its centre: red" in done.stdout
    assert (tmp_path / "parts" / "parts.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_parquet_gz_and_several_files_become_lines(data, tmp_path):
    import datasets

    rows = [json.loads(line) for line in data.read_bytes().splitlines()]
    datasets.Dataset.from_list(rows[:6]).to_parquet(tmp_path / "some.parquet")
    (tmp_path / "others.jsonl.gz").write_bytes(gzip.compress(b"\n".join(data.read_bytes().splitlines()[6:])))
    run(tmp_path / "some.parquet", tmp_path / "others.jsonl.gz", "--parts", 2, "--out", tmp_path / "parts")
    written = [json.loads(line) for part in lines_of(tmp_path / "parts") for line in part]
    assert sorted(written, key=str) == sorted(rows, key=str)


def test_a_row_of_parquet_that_json_cannot_hold_is_named(tmp_path):
    import datetime

    import datasets

    rows = [{"text": f"row {number}", "day": datetime.date(2026, 1, 1)} for number in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "dated.parquet")
    refused = run(tmp_path / "dated.parquet", "--parts", 2, "--out", tmp_path / "parts", code=1).stderr
    assert "dated.parquet, rows 1-3: cannot be written as JSON" in refused
    assert not (tmp_path / "parts").exists()


def test_columns_of_other_names_are_renamed_and_the_parts_keep_the_datas_names(tmp_path):
    lines = [json.dumps({"question": f"what is {n}?", "answer": "red " * n}) for n in range(1, 9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    error = run(tmp_path / "rows.jsonl", "--out", tmp_path / "out", code=1).stderr
    assert "rows.jsonl, lines 1-8: needs messages, prompt and completion, or text; it has question, answer" in error
    names = ["--rename", "prompt=question", "--rename", "completion=answer"]
    done = run(tmp_path / "rows.jsonl", *names, "--by", "length", "--parts", 2, "--out", tmp_path / "out")
    assert [line for part in lines_of(tmp_path / "out") for line in part] == [line.encode() for line in lines]
    assert "--set=data.rename.prompt=question --set=data.rename.completion=answer" in done.stderr
    wrong = run(tmp_path / "rows.jsonl", "--rename", "text=words", "--out", tmp_path / "other", code=1).stderr
    assert "rename: no row has a field 'words'; check the spelling" in wrong
    assert "--rename text: must be written key=value" in run("-", "--rename", "text", "--out", "o", code=1).stderr


def test_a_dry_run_shows_the_sizes_and_writes_nothing(data, tmp_path):
    before = tiny.files_of(tmp_path)
    assert "nothing was written" in run(data, "--dry-run", "--out", tmp_path / "parts").stdout
    args = [data, "--by", "kmeans", "--embed", "no/where", "--out", tmp_path / "parts", "--dry-run"]
    assert "12 different texts are to be embedded" in run(*args).stderr
    assert tiny.files_of(tmp_path) == before


def test_only_a_folder_of_parts_is_replaced(data, tmp_path):
    out = tmp_path / "parts"
    run(data, "--out", out)
    assert "--overwrite" in run(data, "--out", out, code=1).stderr
    run(data, "--parts", 2, "--out", out, "--overwrite")
    assert len(lines_of(out)) == 2
    for name, content in (("notes.txt", "mine"), ("report.json", "{}")):
        (out / name).write_text(content)
        before = tiny.files_of(out)
        assert "is not replaced" in run(data, "--out", out, "--overwrite", code=1).stderr
        assert tiny.files_of(out) == before
        (out / name).unlink()
    (out / "report.json").mkdir()
    assert "is not replaced" in run(data, "--out", out, "--overwrite", code=1).stderr


def test_an_input_inside_the_output_is_refused(data, tmp_path):
    run(data, "--out", tmp_path / "parts")
    part = tmp_path / "parts" / "part-0.jsonl"
    assert "lies in the output" in run(part, "--parts", 2, "--out", tmp_path / "parts", "--overwrite", code=1).stderr


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_fails_while_it_writes_leaves_what_was_there(data, tmp_path, monkeypatch, there):
    out = tmp_path / "parts"
    if there:
        run(data, "--out", out)
    before = tiny.files_of(tmp_path)

    def full(file: Path, content: bytes) -> None:
        if file.name == "part-1.jsonl":
            raise OSError(28, "No space left on device", str(file))
        file.write_bytes(content)

    monkeypatch.setattr(parts_folder, "_write", full)
    assert "No space left" in run(data, "--parts", 2, "--out", out, "--overwrite", code=1).stderr
    assert tiny.files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--parts", "13"], "12 different rows for 13 parts"),
        (["--by", "source"], "method.source_field is missing"),
        (["--balanced"], "unknown key 'balanced'"),
        (["--by", "conflict", "--source-field", "task", "--parts", "2"], "name it with --base"),
        (["--by", "conflict", "--source-field", "task", "--parts", "6", "--base", "x"], "must be a power of two"),
        (["--by", "kmeans"], "needs embeddings; name an encoder"),
        (["--set", "oops"], "must be written key=value"),
        (["--seed", "-1"], "seed: must be at least 0"),
    ],
)
def test_bad_settings_are_named(data, tmp_path, args, problem):
    assert problem in run(data, *args, "--out", tmp_path / "parts", code=1).stderr
    assert not (tmp_path / "parts").exists()


def test_a_method_that_is_not_there_is_refused_with_those_that_are(data, tmp_path):
    refused = run(data, "--by", "colour", "--out", tmp_path / "parts", code=2).stderr
    assert "not one of conflict, kmeans, length, random, source" in refused
