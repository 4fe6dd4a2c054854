"""The folder of a dispersal: ``part-0.jsonl`` and so on, ``report.json``, and ``parts.png`` where rows were embedded.

It is filled beside its place and renamed, so that it is there whole or not at all. Every row is written as the line
that it was read from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from weightops.errors import WeightopsError
from weightops.io.folder import read_json
from weightops.io.replacing import check_place, not_replaced, private_folder, put_in_place, recover
from weightops.recipes.floor.checking import check, plain
from weightops.recipes.parts.disperse import Dispersal, Dispersed, disperse, looked_at
from weightops.recipes.parts.picture import draw_parts
from weightops.rows.reader import read_lines
from weightops.version import __version__

KIND: Final = "weightops disperse"
REPORT, PICTURE = "report.json", "parts.png"
_NAMES = re.compile(r"part-\d+\.jsonl|report\.json|parts\.png")


def disperse_files(
    files: Sequence[str | Path],
    out: Path,
    dispersal: Dispersal,
    *,
    base: str | None = None,
    rename: Mapping[str, str] | None = None,
    overwrite: bool = False,
    tell: Callable[[str], object] = lambda note: None,
) -> dict[str, Any]:
    """Disperse the rows of files into files of a folder.

    Args:
        files: JSON Lines (``.gz`` too), Parquet, or ``-``.
        out: Folder to make.
        dispersal: How.
        base: Model that the parts are to be trained from; needed by methods that read gradients.
        rename: Field of a row to the data's name for it. The parts keep the data's names.
        overwrite: Replace a folder that this function wrote.
        tell: Is told at once what the user should know.

    Returns:
        What ``report.json`` holds.

    Raises:
        WeightopsError: settings or rows that do not fit, or an output in the way.
    """
    check(dispersal)
    _check_free(files, out, overwrite)
    rows, lines = zip(*read_lines(files, rename), strict=True)
    dispersed = disperse(rows, dispersal, base, tell)
    report = _report(files, lines, dispersal, base, dispersed)
    with_picture = dispersed.vectors is not None
    staged = out.absolute().parent / f".{out.absolute().name}.dispersing"
    staged.parent.mkdir(parents=True, exist_ok=True)
    private_folder(staged)
    try:
        recover(out, staged / "replaced")
        new = staged / "parts"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for number, members in enumerate(dispersed.parts):
            _write(new / f"part-{number}.jsonl", b"".join(lines[row] + b"\n" for row in members))
        if with_picture:
            draw_parts(dispersed, new / PICTURE, f"{len(rows)} rows in {dispersal.parts} parts")
        _write(new / REPORT, json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n")
        put_in_place(new, out, staged / "replaced", overwrite=overwrite, why_not=why_not)
    finally:
        if not (staged / "replaced").exists() or out.exists():
            shutil.rmtree(staged)
    return report


def preview(
    files: Sequence[str | Path],
    out: Path,
    dispersal: Dispersal,
    *,
    base: str | None = None,
    rename: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """What :func:`disperse_files` would do, as far as it shows from the rows; no model is opened, nothing is written.

    Raises:
        WeightopsError: as far as it shows.
    """
    check(dispersal)
    _check_free(files, out, overwrite)
    rows = [row for row, _ in read_lines(files, rename)]
    if dispersal.embed is None and not dispersal.method.needs():
        return disperse(rows, dispersal, base).to_json()
    texts, together = looked_at(rows, dispersal, base)
    several = [unit for unit in together if len(unit) > 1]
    kept = {"groups": len(several), "rows": sum(map(len, several))}
    note = f"{len(set(texts))} different texts are to be embedded or trained on; sizes show only then"
    return {"rows": len(rows), "kept_together": kept, "notes": [note], "parts": []}


def why_not(out: Path) -> str | None:
    """Why what lies at a path may not be replaced by a dispersal, as a problem line; none where it may."""
    reason = _strange(out) if os.path.lexists(out) else None
    return reason and not_replaced(out, reason)


def _strange(out: Path) -> str | None:
    if out.is_symlink() or not out.is_dir():
        return "it is a link or a file"
    if Path.cwd().is_relative_to(out.resolve()) or os.path.ismount(out):
        return "it is a mount point, or the current folder lies in it"
    names = sorted(path.name for path in out.iterdir())
    strange = [name for name in names if not _NAMES.fullmatch(name) or not (out / name).is_file()]
    if strange:
        return f"it holds what is no part: {', '.join(strange[:3])}"
    try:
        written = not names or read_json(out / REPORT).get("kind") == KIND
    except (OSError, WeightopsError):
        written = False
    return None if written else f"its {REPORT} was not written by weightops"


def _check_free(files: Sequence[str | Path], out: Path, overwrite: bool) -> None:
    inside = [str(file) for file in files if Path(file).resolve().is_relative_to(out.resolve())]
    if inside:
        raise WeightopsError(f"{inside[0]}: lies in the output {out}; choose another output")
    check_place(out, overwrite=overwrite, why_not=why_not)


def _report(
    files: Sequence[str | Path], lines: Sequence[bytes], dispersal: Dispersal, base: str | None, dispersed: Dispersed
) -> dict[str, Any]:
    content = dispersed.to_json()
    parts: list[Mapping[str, Any]] = [
        {"file": f"part-{number}.jsonl", **part, "blake3": _digest(lines, members)}
        for number, (part, members) in enumerate(zip(content["parts"], dispersed.parts, strict=True))
    ]
    return {
        "kind": KIND,
        "weightops": __version__,
        "data": [str(file) for file in files],
        "base": base,
        "dispersal": plain(dispersal),
        **content,
        "parts": parts,
    }


def _digest(lines: Sequence[bytes], members: Sequence[int]) -> str:
    return blake3(b"".join(lines[row] + b"\n" for row in members)).hexdigest()


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
