"""One reader for all: the same rows from every form, and no file that stops it or fills the memory."""

import gzip
import io
import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.rows import reader
from weightops.rows.labelled import label_faults, labelled_texts, text_faults, texts
from weightops.rows.reader import read_rows
from weightops.rows.row import Row

ROWS = [{"prompt": "2024-01-01", "label": "safe", "split": "a"}, {"prompt": "b", "label": "unsafe", "split": "b"}]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows_of(place, records=ROWS):
    return [Row.of(f"{place} {number}", record) for number, record in enumerate(records, 1)]


def test_every_form_gives_the_same_rows_and_says_where_each_is(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "rows.jsonl").write_text(TEXT)
    (tmp_path / "rows.json").write_text("\ufeff" + TEXT)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.json", "rows.jsonl.gz"):
        assert read_rows([tmp_path / name]) == rows_of(f"{tmp_path / name}, line")
    assert read_rows([tmp_path / "rows.parquet"]) == rows_of(f"{tmp_path / 'rows.parquet'}, row")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert read_rows(["-"]) == rows_of("stdin, line")


def test_hub_data_goes_through_datasets(monkeypatch):
    import datasets

    def load_dataset(name, subset, *, split, revision):
        assert (name, subset, split, revision) == ("org/name", "en", "test", "v1")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows(hub="org/name@v1", subset="en", split="test") == rows_of("org/name@v1, row")


def test_rows_are_chosen_before_fields_are_renamed(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(TEXT)
    (taken,) = read_rows([file], only={"split": "b"}, rename={"text": "prompt"})
    assert (taken.place, taken.text, taken.columns) == (f"{file}, line 2", "b", {"split": "b"})
    with pytest.raises(WeightopsError, match="none of 2 rows has"):
        read_rows([file], only={"split": "c"})
    with pytest.raises(WeightopsError, match="rename: no row has a field 'promt'"):
        read_rows([file], rename={"text": "promt"})
    file.write_text("\n")
    with pytest.raises(WeightopsError, match="no rows"):
        read_rows([file])
    assert read_rows([file], allow_empty=True) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"\xff", "not UTF-8 (byte 0 of the line)"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_every_wrong_line_of_every_file_is_named(tmp_path, line, message):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    content = b'{"text": "a"}\n\n' + line + b"\n" + line
    files[0].write_bytes(content)
    files[1].write_bytes(gzip.compress(content))
    with pytest.raises(WeightopsError) as caught:
        read_rows(files)
    places = [f"{file}, lines 3-4: " for file in files]
    assert all(p.startswith(place) for p, place in zip(caught.value.problems, places, strict=True))
    assert all(message in problem for problem in caught.value.problems)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_are_more_than_an_error(tmp_path_factory, content, packed):
    file = tmp_path_factory.getbasetemp() / f"any.jsonl{'.gz' if packed else ''}"
    file.write_bytes(content)
    with suppress(WeightopsError):
        assert texts(read_rows([file])) is not None


def test_a_broken_archive_a_folder_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    whole = gzip.compress(TEXT.encode() * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "bad.parquet").write_text("no")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in (
        ("cut.jsonl.gz", "cannot be read"),
        ("bad.jsonl.gz", "cannot be read"),
        ("bad.parquet", "not a Parquet file"),
        ("none.jsonl", "No such file"),
        ("none.parquet", "No such file"),
        ("pipe.jsonl", "a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
        (".", "a folder"),
        ("nul\0", "cannot be read"),
    ):
        with pytest.raises(WeightopsError, match=message):
            read_rows([os.path.join(tmp_path, name)])


def test_lines_and_archives_have_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LINE_BYTES", 2**20)
    monkeypatch.setattr(reader, "UNPACKED_BYTES", 4 * 2**20)
    monkeypatch.setattr(reader, "STDIN_BYTES", 2**20)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text": "' + "a" * 2**20 + '"}\n')
    with pytest.raises(WeightopsError, match="line 2: longer than 1 MiB"):
        read_rows([file])
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"\n" * 2**24))
    with pytest.raises(WeightopsError, match="more than 4 MiB of rows"):
        read_rows([bomb])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n' * 2**17)))
    with pytest.raises(WeightopsError, match="stdin, line .*more than 1 MiB"):
        read_rows(["-"])


def test_lines_and_fields_are_reported_in_one_round_in_the_order_of_the_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": 3, "label": 0}\n{\n{"text": "a", "label": 0}\n{"text": "b", "label": "maybe"}\n[]\n')
    with pytest.raises(WeightopsError) as refused:
        read_rows([file], check=label_faults())
    assert [problem.removeprefix(f"{file}, line ")[:9] for problem in refused.value.problems] == [
        "1: text: ", "2: not va", "4: label:", "5: not a ",
    ]  # fmt: skip


def test_a_fault_names_all_its_lines_in_one_and_garbage_of_many_kinds_is_ten_faults_and_a_count(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' + "{\n" * 500 + '{"text": "a"}\n{\n[]\n')
    with pytest.raises(WeightopsError) as caught:
        read_rows([file])
    assert list(caught.value.problems) == [
        f"{file}, lines 2-501, 503: not valid JSON",
        f"{file}, line 504: not a JSON object; write one object on each line",
    ]
    file.write_text("".join(f'{{"text": {number}}}\n' for number in range(500)))
    with pytest.raises(WeightopsError) as caught:
        read_rows([file], check=text_faults)
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1].startswith("490 more lines")


def test_reading_imports_neither_torch_nor_datasets(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    code = (
        "import sys\n"
        "from weightops.rows import chat, labelled, padding, reader\n"
        "labelled.labelled_texts(reader.read_rows(sys.argv[1:]))\n"
        "sys.exit(' '.join({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows.jsonl")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("record", [
    {"text": "ab", "label": "unsafe", "first_unsafe_char": 2},
    {"text": "ab", "label": "safe", "first_unsafe_char": 2},
    {"messages": [{"role": "user", "content": "q"}], "label": "unsafe"},
    {"messages": [], "label": "unsafe"},
    {"text": "ab", "label": "unsafe", "prefix_labels": ["bad"]},
    {"text": "ab", "label": 1.0},
])  # fmt: skip
def test_training_measuring_and_scoring_agree_about_a_row(tmp_path, record):
    """The commands, as they are given: what one refuses in a text or its label, the others that read it refuse."""
    from click.testing import CliRunner

    from weightops.cli.guard import command
    from weightops.recipes.data.source import load_rows
    from weightops.recipes.floor.settings import Data

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(record))

    def problems(run):
        try:
            run()
        except WeightopsError as error:
            return [problem for problem in error.problems if str(file) in problem]
        return []

    trained = problems(lambda: labelled_texts(load_rows(Data((str(file),)))))
    measured = CliRunner().invoke(command, ["eval", str(tmp_path / "none"), str(file)]).exception
    scored = CliRunner().invoke(command, ["score", str(tmp_path / "none"), "--jsonl", str(file)]).exception
    assert [p for p in str(measured).split("\n") if str(file) in p] == trained
    judged = problems(lambda: texts(read_rows([file])))
    assert [p for p in str(scored).split("\n") if str(file) in p] == judged
    assert set(judged) <= set(trained)
