import gzip
import json

import pytest

from weightops.errors import WeightopsError
from weightops.recipes.data.rows import load_rows, read_rows
from weightops.recipes.floor.settings import Data

ROWS = [{"prompt": "2024-01-01", "label": "safe", "split": "a"}, {"prompt": "b", "label": "unsafe", "split": "b"}]


def test_json_lines_zipped_or_not_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"):
        assert read_rows(tmp_path / name) == ROWS
    taken = load_rows(Data((str(tmp_path / "rows.parquet"),), only={"split": "b"}, rename={"text": "prompt"}))
    assert taken == [{**ROWS[1], "text": "b"}]
    with pytest.raises(WeightopsError, match="none of 2 rows"):
        load_rows(Data((str(tmp_path / "rows.jsonl"),), only={"split": "c"}))


@pytest.mark.parametrize(
    ("written", "said"), [('{"a": 1}\n[1]\n', "line 2: not a JSON object"), ("{\n", "line 1: not valid JSON")]
)
def test_a_bad_line_is_named(tmp_path, written, said):
    (tmp_path / "rows.jsonl").write_text(written)
    with pytest.raises(WeightopsError, match=said):
        read_rows(tmp_path / "rows.jsonl")


def test_what_is_not_there_or_not_parquet_is_said(tmp_path):
    (tmp_path / "bad.parquet").write_text("no")
    for name, said in (
        ("none.jsonl", "No such file"),
        ("none.parquet", "No such file"),
        ("bad.parquet", "not a Parquet"),
    ):
        with pytest.raises(WeightopsError, match=said):
            read_rows(tmp_path / name)
