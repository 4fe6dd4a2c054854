"""Runs a merge file: its documents in order, with the results of earlier ones kept until the output is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..algebra.checkpoint import Checkpoint, sources
from ..algebra.opening import Opener
from ..engine.plan import DEFAULT_MEMORY
from ..errors import Message, Remedy, ResumableError, WeightopsError, attempt_all
from ..io.folder import read_json
from ..io.output_lock import OutputLock
from ..io.replacing import private_folder
from ..io.staging import output_problems
from ..output.provenance import RECORD
from ..output.save import Saved, save
from .build import Built, Options, build
from .config.documents import dependencies, in_order, names_of
from .config.reading import parse, read_text
from .config.schema import MergeConfig

if TYPE_CHECKING:
    from ..engine.ray_executor import RayExecutor


@dataclass(frozen=True)
class Recipe:
    """A merge file, read.

    Attributes:
        documents: The documents in the order they run.
        text: The file's text.
    """

    documents: tuple[MergeConfig, ...]
    text: str

    @property
    def steps(self) -> tuple[MergeConfig, ...]:
        """The documents before the last one; only other documents use their results."""
        return self.documents[:-1]


def read(path: Path, *, strict: bool = False) -> Recipe:
    """Read a merge file.

    Args:
        strict: Refuse what has no effect in it, and weights that are not set.

    Raises:
        WeightopsError: all problems of the file.
    """
    return from_text(read_text(path), str(path), strict=strict)


def from_text(text: str, where: str, *, strict: bool = False) -> Recipe:
    """A merge file from its text.

    Args:
        where: The file's name in messages.
        strict: As for :func:`read`.

    Raises:
        WeightopsError: all problems of the text.
    """
    return Recipe(in_order(parse(text, where, strict=strict)), text)


def plan(recipe: Recipe, options: Options, results: Mapping[str, Path] | None = None) -> Built:
    """Plan the last document; the results of earlier ones must exist.

    Args:
        results: Folder of each earlier document, by name.
    """
    config = recipe.documents[-1]
    return build(config, open_models(config, results or {}, Opener()), replace(options, text=recipe.text))


def merge(
    recipe: Recipe,
    out: Path,
    options: Options,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
    executor: RayExecutor | None = None,
    keep_steps: Path | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> Saved:
    """Run every document in order; the last one's result is ``out``.

    The results of the others are kept in a hidden folder beside ``out`` until ``out`` is complete. The next run after
    a killed one uses them again; a run that fails deletes them. Meanwhile a second run to the same ``out`` is refused.

    Args:
        executor: Computes on a cluster; by default threads of this process compute.
        keep_steps: Folder in which the results of the others stay, each under its document's name. A result that is
            there already is used if it has the same recipe and is newer than its inputs.
        tell: Called with the text of each note.

    Raises:
        WeightopsError: as :func:`weightops.merge.build.build` and :func:`weightops.output.save.save`.
    """
    opener = Opener()
    _check_apart(recipe, out, keep_steps)
    states = _check_first(recipe, out, opener, overwrite=overwrite)
    results: dict[str, Path] = {}
    with _steps_folder(recipe, out, keep_steps) as (steps, lock):
        for config in recipe.documents:
            _refuse_changed(states)
            built = build(config, open_models(config, results, opener), replace(options, text=recipe.text))
            for note in built.plan.notes:
                tell(note)
            last = config is recipe.documents[-1]
            place = out if last else steps / str(config.name)
            if last or not _is_complete(place, built):
                saved = save(
                    built.plan,
                    built.package,
                    place,
                    overwrite=overwrite or not (last or keep_steps),
                    threads=threads,
                    memory=memory,
                    progress=progress,
                    lock=lock if last else None,
                    executor=executor,
                )
            results[str(config.name)] = place
    return saved


@contextmanager
def _steps_folder(recipe: Recipe, out: Path, kept: Path | None) -> Iterator[tuple[Path, OutputLock | None]]:
    """The folder for the results of earlier documents, and the output's lock; deleted once the output is complete.

    A file with a single document needs neither: no folder is made, and saving takes the lock.

    Args:
        kept: A folder that the user named; it is not deleted.
    """
    steps = out.absolute().parent / f".{out.name}.steps"
    if not recipe.steps:
        yield steps, None
        return
    with OutputLock(out) as lock:
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            yield kept, lock
            return
        new = not os.path.lexists(steps)
        private_folder(steps)
        try:
            yield steps, lock
        except WeightopsError as error:
            if new and not isinstance(error, ResumableError):
                shutil.rmtree(steps, ignore_errors=True)
            raise
        shutil.rmtree(steps, ignore_errors=True)


def _check_apart(recipe: Recipe, out: Path, kept: Path | None) -> None:
    """Raise if the output and a result that is to be kept would be one folder, or one inside the other."""
    place = out.resolve()
    for step in recipe.steps if kept is not None else ():
        other = (Path(kept or "") / str(step.name)).resolve()
        if place == other or place in other.parents or other in place.parents:
            problem = f"{out}: the output, and {other} for the result of {step.name!r}, must lie apart"
            raise WeightopsError(Message(problem, Remedy("choose another {}", "keep_steps")))


def _check_first(recipe: Recipe, out: Path, opener: Opener, *, overwrite: bool) -> dict[Path, tuple[int, int]]:
    """Before any document runs, find the problems that would only stop a later one.

    Returns:
        Size and modification time of every file of the models, when they were opened.
    """
    problems = output_problems(out, (), 0, overwrite=overwrite)
    steps = names_of(recipe.steps)
    outside = {name: config for config in recipe.documents for name in named_models(config)}
    named = [(name, config) for name, config in outside.items() if name.partition("+")[0] not in steps]
    opened: Sequence[Checkpoint] = ()
    try:
        opened = attempt_all(partial(_open, name, config, {}, opener) for name, config in named)
    except WeightopsError as error:
        problems += error.problems
    read = [source for checkpoint in opened for source in sources(checkpoint)]
    folders = [source.folder for source in read if source.folder is not None]
    problems += output_problems(out, folders, 0, overwrite=overwrite) if recipe.steps and not problems else []
    if problems:
        raise WeightopsError(*problems)
    return {file: _state(file) for source in read for file in source.files}


def _state(file: Path) -> tuple[int, int]:
    info = file.stat()
    return info.st_size, info.st_mtime_ns


def _refuse_changed(states: Mapping[Path, tuple[int, int]]) -> None:
    """Raise if a model's file changed: headers are read once, so files must not change until the last document ends."""
    changed = [file for file, state in states.items() if not file.exists() or _state(file) != state]
    if changed:
        raise WeightopsError(*(f"{file}: changed while the merge ran; run the merge again" for file in changed))


def open_models(config: MergeConfig, results: Mapping[str, Path], opener: Opener) -> dict[str, Checkpoint]:
    """Open every model that a document names; the name of an earlier document opens the folder of its result.

    Args:
        results: Folder of each earlier document, by name.
        opener: Remembers the models it has opened, so that no header is read twice in a run.

    Raises:
        WeightopsError: the problems of all models.
    """
    names = named_models(config)
    opened = attempt_all(partial(_open, name, config, results, opener) for name in names)
    return dict(zip(names, opened, strict=True))


def named_models(config: MergeConfig) -> tuple[str, ...]:
    """Every model that a document names, each once: the merged ones, and one that only gives its tokenizer."""
    names = list(config.referenced_models())
    if config.tokenizer is not None and config.tokenizer.source not in ("union", "base"):
        names += [config.tokenizer.source] * (not _only_tokenizer(config.tokenizer.source))
    return tuple(dict.fromkeys(names))


def needed_steps(recipe: Recipe) -> tuple[str, ...]:
    """The earlier documents that the last one needs."""
    return dependencies(recipe.documents[-1], names_of(recipe.steps))


def kept_results(recipe: Recipe, folder: Path | None) -> dict[str, Path]:
    """The results of earlier documents that lie in a folder where they are kept, by name."""
    names = names_of(recipe.steps) if folder is not None else ()
    return {name: place for name in names if (place := Path(folder or "") / name).is_dir()}


def _only_tokenizer(source: str) -> bool:
    """Whether the source is a local folder without weights; :mod:`.tokens.planning` reads such a folder itself."""
    folder = Path(source).expanduser()
    return folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin"))


def _open(name: str, config: MergeConfig, results: Mapping[str, Path], opener: Opener) -> Checkpoint:
    base, _, adapter = name.partition("+")
    try:
        if base not in results:
            return opener.open(name)
        opened = opener.open(f"{results[base]}+{adapter}" if adapter else results[base])
    except WeightopsError as error:
        raise WeightopsError(*(config.at(_line_of(name, config), problem) for problem in error.problems)) from error
    return replace(opened, source=replace(opened.source, spec=name))


def _line_of(name: str, config: MergeConfig) -> int:
    """The line where a document first names a model."""
    lines = [source.line for group in config.groups() for source in group.sources if source.model == name]
    lines += [config.line_of("base_model")] * (config.base_model == name)
    return min(lines, default=config.tokenizer.line if config.tokenizer else config.line)


def _is_complete(place: Path, built: Built) -> bool:
    """Whether an earlier, killed run completed this step with the same recipe and unchanged input files."""
    if not place.exists() or read_json(place / RECORD).get("recipe") != dict(built.plan.recipe):
        return False
    written = (place / RECORD).stat().st_mtime_ns
    return all(path.stat().st_mtime_ns < written for path in built.plan.inputs)
