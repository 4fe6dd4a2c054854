"""Pages that show the results of experiments, as files of a test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.experiments.evidence import Page


def marks(names: Iterable[str]) -> str:
    """A page with an earlier line, "old", between the marks of each table."""
    return "".join(f"text\n<!-- {name} -->\nold\n<!-- end of {name} -->\nmore\n" for name in names)


def written(page: Page, results: Any, folder: Path) -> str:
    """What a page of earlier tables says once it was written; it says the same once it was written again."""
    copy = replace(page, file=folder / "page.md")
    copy.file.write_text(marks(page.tables(results)))
    copy.write(results)
    text = copy.file.read_text()
    copy.write(results)
    assert copy.file.read_text() == text
    assert "old" not in text
    return text
