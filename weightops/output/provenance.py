"""``weightops.json``: the sources and the recipe of an output, and digests to verify that it is unchanged."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..engine.plan import Plan
from ..engine.tally import Tally, tensor_digest
from ..errors import WeightopsError, short
from ..io.adapter import Adapter
from ..io.folder import read_json, stored_tensors
from ..io.opened import Source
from ..io.replacing import RECORD as RECORD
from ..io.safetensors import StoredTensor
from ..io.small_files import read_beside
from ..io.weights import Weights
from ..version import __version__


def record(plan: Plan, tally: Tally, sources: Iterable[Source]) -> dict[str, Any]:
    """The record of a finished run, as JSON values: recipe, sources with revision and content, outputs with digests."""
    outputs = {name: output for job in plan.jobs for name, output in job.outputs.items()}
    digests = {_place(tensor): digest for tensor, digest in tally.inputs.items()}
    return {
        "weightops": __version__,
        "recipe": dict(plan.recipe),
        "sources": [_source(source, digests) for source in sources],
        "outputs": {name: _as_written(*output, tally.outputs[name]) for name, output in sorted(outputs.items())},
    }


def _as_written(dtype: str, shape: tuple[int, ...], digest: str) -> str:
    return f"{dtype} {list(shape)} {digest}"


def content(digests: Mapping[StoredTensor, str]) -> str:
    """One digest for a set of tensors: BLAKE3 of a line for each, ``name dtype shape digest``, sorted by name."""
    lines = sorted(f"{t.name} {_as_written(t.dtype, t.shape, digest)}\n" for t, digest in digests.items())
    return "blake3:" + blake3("".join(lines).encode()).hexdigest()


def record_file(made: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """``weightops.json``: a record, and the digests of the other small files of the output.

    Args:
        made: As :func:`record` gives it.
        files: Their contents by name.
    """
    digests = {name: file_digest(data) for name, data in sorted(files.items())}
    return (json.dumps({**made, "files": digests}, indent=2, ensure_ascii=False) + "\n").encode()


def record_again(folder: Path, name: str) -> None:
    """Put a small file's present digest into the record, after weightops itself has changed the file."""
    made = read_json(folder / RECORD)
    files = made.get("files")
    if isinstance(files, dict) and name in files:
        files[name] = file_digest(read_beside(folder, name))
        unfinished = folder / f".{RECORD}.part"
        unfinished.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(unfinished, folder / RECORD)


def has_file_digests(folder: Path) -> bool:
    """Whether the record of an output holds digests of its small files; older records hold only their names."""
    return isinstance(read_json(folder / RECORD).get("files"), dict)


def file_digest(data: bytes) -> str:
    """The digest of a small file, as the record holds it."""
    return "blake3:" + blake3(data).hexdigest()


def verify(folder: Path, *, unchecked: Collection[str] = ()) -> list[str]:
    """Compare an output with its record: its tensors, and its small files if the record has their digests.

    Args:
        unchecked: Small files that may differ.

    Returns:
        A line for every tensor that is missing, extra or changed, and every small file that is missing or changed;
        empty if the output is unchanged. Files that were added are no problem.

    Raises:
        WeightopsError: the folder has no record, or its weights cannot be read.
    """
    made = read_json(folder / RECORD)
    recorded, files = made.get("outputs"), made.get("files")
    if not isinstance(recorded, dict):
        raise WeightopsError(f"{folder}: no {RECORD} with output digests; only outputs of weightops can be verified")
    digests = (
        {name: digest for name, digest in files.items() if name not in unchecked} if isinstance(files, dict) else {}
    )
    return [*_tensor_problems(folder, recorded), *_file_problems(folder, digests)]


def _file_problems(folder: Path, recorded: Mapping[str, Any]) -> Iterator[str]:
    for name, digest in sorted(recorded.items()):
        try:
            if file_digest(read_beside(folder, name)) != digest:
                yield f"{folder / name}: has changed since it was written"
        except FileNotFoundError:
            yield f"{folder / name}: is in the record but not in the folder"
        except WeightopsError as error:
            yield from error.problems
        except (OSError, ValueError) as error:  # ValueError: a name that is not valid for any file
            yield f"{folder / short(name)}: cannot be read ({error}); restore the file"


def _tensor_problems(folder: Path, recorded: Mapping[str, Any]) -> list[str]:
    tensors = stored_tensors(folder)
    problems = [f"{name}: is in the record but not in the folder" for name in sorted(recorded.keys() - tensors.keys())]
    problems += [f"{name}: is in the folder but not in the record" for name in sorted(tensors.keys() - recorded.keys())]
    for name in sorted(recorded.keys() & tensors.keys()):
        tensor = tensors[name]
        if _as_written(tensor.dtype, tensor.shape, tensor_digest(tensor)) != recorded[name]:
            problems.append(f"{tensor.file}: {name}: its bytes, dtype or shape have changed since it was written")
    return problems


def _place(tensor: StoredTensor) -> tuple[str, int, int]:
    """The real file, the offset and the size of a tensor, independent of the path that was used to open it."""
    return os.path.realpath(tensor.file), tensor.offset, tensor.nbytes


def _source(source: Source, digests: Mapping[tuple[str, int, int], str]) -> dict[str, Any]:
    if isinstance(source, Weights):
        read = (part for tensor in source.tensors.values() for part in (tensor, *tensor.parts))
        used = {tensor: digests[place] for tensor in read if (place := _place(tensor)) in digests}
    else:  # what is added to a model is small, and writing may have read it many times
        used = {tensor: digests.get(_place(tensor)) or tensor_digest(tensor) for tensor in stored_in(source)}
    entry: dict[str, Any] = {"name": source.spec, "content": content(used), "tensors": len(used)}
    if isinstance(source, Weights) and source.revision:
        entry["revision"] = source.revision
    return entry


def stored_in(source: Source) -> list[StoredTensor]:
    """Every stored tensor of a model, an adapter or a sparse delta."""
    if isinstance(source, Weights):
        return list(source.tensors.values())
    if isinstance(source, Adapter):
        factors = [factor for update in source.updates.values() for factor in (update.left, update.right)]
        return [*factors, *source.replaced.values()]
    return [stored for tensor in source.tensors.values() for stored in tensor.stored]
