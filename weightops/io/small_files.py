"""Small files of strangers: opened without waiting, read up to a bound, never through a link out of their folder."""

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
    """A descriptor to read a regular file, opened without waiting for a writer; the caller closes it.

    Raises:
        WeightopsError: it is a pipe, a device, a socket or a folder.
        OSError: it is missing or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise WeightopsError(f"{path}: not a regular file (a folder, a pipe or a device); put a plain file there")


def read_small(path: Path, limit: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. Nothing beyond the limit is read.

    Raises:
        WeightopsError: it is not a regular file, or larger.
        OSError: it is missing or may not be read.
    """
    with open(open_file(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise WeightopsError(f"{path}: {size} bytes, at most {limit} are read; restore or download the file again")
    return content


def inside(file: Path, folder: Path) -> Path:
    """The file, unless a link leads from it out of its folder.

    Links inside the folder are followed, and those from a snapshot in the hub's cache into the blobs of its repository.

    Raises:
        WeightopsError: it leads out, or links form a circle.
    """
    try:
        target, home = file.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise WeightopsError(f"{file}: its link cannot be followed; put the file itself there") from error
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise WeightopsError(f"{file}: a link out of its folder (to {target}); copy the file in if it belongs there")
    return file


def read_beside(folder: Path, name: str, limit: int = MOST_BYTES) -> bytes:
    """A small file of a model folder; a link that leads out of the folder is refused.

    Raises:
        WeightopsError: it leads out of the folder, is not a regular file, or is larger than ``limit``.
        OSError: it is missing or may not be read.
    """
    return read_small(inside(folder / name, folder), limit)
