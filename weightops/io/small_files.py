"""Safe reading of small files that we did not write: no blocking, a size limit, no link out of the folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from ..errors import WeightopsError

#: Bytes of a JSON or YAML file. The index of a model with 150,000 tensors has about 15 MB.
MOST_TEXT: Final = 32_000_000
#: Bytes of any other file that goes with a model; the largest ``tokenizer.json`` in use have about 35 MB.
MOST_BYTES: Final = 128_000_000


def open_file(path: Path) -> int:
    """Open a regular file for reading, without waiting for a writer, and return its descriptor; the caller closes it.

    Raises:
        WeightopsError: the path is a pipe, a device, a socket or a folder.
        OSError: the file is missing or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise WeightopsError(f"{path}: not a regular file (a folder, a pipe or a device); put a plain file there")


def read_small(path: Path, limit: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. Nothing beyond the limit is read.

    Raises:
        WeightopsError: the path is not a regular file, or the file is larger than ``limit``.
        OSError: the file is missing or cannot be read.
    """
    with open(open_file(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise WeightopsError(f"{path}: it has {size} bytes, the limit is {limit}; restore or download the file again")
    return content


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of a journal, with their ends; a last line that was cut off by a kill is left out."""
    lines = content.splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def inside(file: Path, folder: Path) -> Path:
    """Return the file, unless it is a link that leaves its folder.

    Two kinds of link are followed: inside the folder, and from a snapshot in the hub's cache to the blobs of the same
    repository.

    Raises:
        WeightopsError: the link leaves the folder, or links form a circle.
    """
    try:
        target, home = file.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise WeightopsError(f"{file}: the link cannot be followed; replace it with the file itself") from error
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise WeightopsError(
            f"{file}: a link out of its folder (to {target}); if the file belongs here, copy it into the folder"
        )
    return file


def read_beside(folder: Path, name: str, limit: int = MOST_BYTES) -> bytes:
    """A small file of a model folder; a link that leaves the folder is refused.

    Raises:
        WeightopsError: the file is outside the folder, is not a regular file, or is larger than ``limit``.
        OSError: the file is missing or cannot be read.
    """
    return read_small(inside(folder / name, folder), limit)
