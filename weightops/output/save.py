"""Writing an output: the weights by the engine, and around them the folder that transformers loads."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import dtypes
from ..engine.execute import default_threads, execute
from ..engine.plan import DEFAULT_MEMORY, Plan, canonical
from ..engine.tally import Tally
from ..errors import WeightopsError, short
from ..io.adapter import Adapter
from ..io.folder import INDEX
from ..io.small_files import MOST_BYTES, read_beside
from ..io.staging import Staging, output_problems
from ..io.weights import Weights
from .modelcard import Card, render
from .provenance import RECORD, record

#: Small files that go with a model whatever they are called.
_CARRIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".bpe", ".spm")
MOST_CARRIED = 256_000_000
"""Bytes of all small files together; they are held in memory."""
GUARD_CARD = "guard.json"
"""How a guard is asked; what arithmetic makes of a guard is another model, so it does not go along by itself."""
_LEFT = (
    INDEX,
    RECORD,
    "pytorch_model.bin.index.json",
    GUARD_CARD,
    "trainer_state.json",
    "training_args.json",
    "adapter_config.json",
)


@dataclass(frozen=True)
class Package:
    """What stands around the weights.

    Attributes:
        model: Whose configuration, tokenizer and chat template go out.
        sources: Everything the output is made of.
        config: Keys of ``config.json`` to change.
        files: Further files, or other contents for the carried ones.
        left_out: Files of the model that must not go out.
    """

    model: Weights
    sources: tuple[Weights | Adapter, ...]
    card: Card
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Saved:
    """A finished output: its folder, and what was measured while it was written."""

    folder: Path
    tally: Tally


def problems(plan: Plan, package: Package, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Everything that stands in the way of writing this plan to this place."""
    inputs = [*plan.inputs, *(s.folder for s in package.sources if s.folder is not None)]
    places = output_problems(out, inputs, plan.bytes_written, overwrite=overwrite)
    return (*plan.problems, *_unwritable(plan, package, out), *places)


def _unwritable(plan: Plan, package: Package, out: Path) -> list[str]:
    """What cannot be written as UTF-8 into the record, the card or the configuration."""
    texts = {str(out): "the output's name", **{source.spec: "a source's name" for source in package.sources}}
    texts |= {
        canonical(plan.recipe): "the recipe",
        canonical({**package.model.config, **package.config}): "config.json",
    }
    return [
        f"{short(text)}: {what} is not UTF-8 text; choose another" for text, what in texts.items() if _no_text(text)
    ]


def _no_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def save(
    plan: Plan,
    package: Package,
    out: Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Saved:
    """Execute a plan and put the finished folder in its place.

    A killed run leaves a hidden folder beside ``out``; the same call resumes it.

    Raises:
        WeightopsError: every problem of the plan and the place together, or what went wrong on the way.
    """
    found = problems(plan, package, out, overwrite=overwrite)
    if found:
        raise WeightopsError(*found)
    threads = threads or default_threads()
    plan.slice_blocks(threads, memory)
    identity = plan.identity()
    plan.check_headers()
    carried = carried_files(package.model.folder)
    with Staging(out, identity, overwrite=overwrite) as staging:
        with bar(plan.work, f"writing {out.name}", shown=progress) as update:
            tally = execute(plan, staging, threads=threads, memory=memory, progress=update)
        for name, data in _files(plan, package, tally, carried).items():
            staging.write(name, data)
        plan.check_unchanged(identity)
        staging.commit()
    return Saved(staging.out, tally)


def bar(total: int, what: str, *, shown: bool = True) -> Any:
    """A progress bar with the time left, on stderr, once the work has taken two seconds; gives a function to call."""
    if not shown or not sys.stderr.isatty():
        return nullcontext(None)
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __enter__(self) -> Any:
            return self.update

    return Bar(total=total, desc=what, unit="B", unit_scale=True, delay=2, leave=False)


def _files(plan: Plan, package: Package, tally: Tally, carried: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every small file of the output, by name."""
    made = record(plan, tally, package.sources)
    files = {n: data for n, data in carried.items() if n not in package.left_out}
    if package.model.config:
        files["config.json"] = _json({**package.model.config, **_dtype_keys(plan, package.model), **package.config})
    if len(plan.files) > 1:
        files[INDEX] = _json(_index(plan))
    files |= package.files
    files[RECORD] = _json({**made, "files": sorted({*files, RECORD, "README.md"})})
    files["README.md"] = render(package.card, made, package.sources).encode()
    return files


def _is_carried(name: str) -> bool:
    return name not in _LEFT and (name.endswith(_CARRIED) or name.upper().startswith(("LICENSE", "NOTICE")))


def carried_files(folder: Path | None) -> dict[str, bytes]:
    """A model folder's small files: configuration, tokenizer, templates, its own code, its licence."""
    if folder is None:
        return {}
    paths = [path for path in sorted(folder.iterdir()) if _is_carried(path.name)]
    paths += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files: dict[str, bytes] = {}
    room = MOST_CARRIED
    for name in (str(path.relative_to(folder)) for path in paths if path.is_file()):
        files[name] = read_beside(folder, name, min(room, MOST_BYTES))
        room -= len(files[name])
    return files


def _dtype_keys(plan: Plan, model: Weights) -> dict[str, str]:
    """The dtype key of the config, when the weights' dtype is another one now."""
    short = {job.dtype for job in plan.jobs if job.written and job.dtype in dtypes.FLOATS}
    if len(short) != 1 or short == {t.dtype for t in model.tensors.values() if t.dtype in dtypes.FLOATS}:
        return {}
    return {"torch_dtype" if "torch_dtype" in model.config else "dtype": dtypes.TO_TORCH[short.pop()]}


def _index(plan: Plan) -> dict[str, Any]:
    placed = {name: file.name for file in plan.files for name in file.offsets}
    total = sum(file.size - len(file.head) for file in plan.files)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
