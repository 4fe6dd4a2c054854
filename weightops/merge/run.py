"""A merge file from its text to finished folders: documents in their order, what they make kept until it is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..engine.plan import DEFAULT_MEMORY
from ..errors import WeightopsError, attempt_all
from ..expr import Checkpoint
from ..io.folder import read_json
from ..provenance import RECORD
from ..save import Saved, save
from .build import Built, Options, build
from .config import load
from .order import dependencies, in_order, names_of
from .schema import MergeConfig


@dataclass(frozen=True)
class Recipe:
    """A merge file, read.

    Attributes:
        documents: In the order to run.
        text: The file's text.
    """

    documents: tuple[MergeConfig, ...]
    text: str

    @property
    def steps(self) -> tuple[MergeConfig, ...]:
        """The documents before the last, whose results are only used by others."""
        return self.documents[:-1]


def read(path: Path) -> Recipe:
    """Read a merge file.

    Raises:
        WeightopsError: everything that is wrong with it.
    """
    return Recipe(in_order(load(path)), path.read_text("utf-8"))


def plan(recipe: Recipe, options: Options, made: Mapping[str, Path] | None = None) -> Built:
    """Plan the last document; the results of earlier ones must be there.

    Args:
        made: Folder of each earlier document, by name.
    """
    config = recipe.documents[-1]
    return build(config, open_models(config, made or {}), replace(options, text=recipe.text))


def merge(
    recipe: Recipe,
    out: Path,
    options: Options,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
    tell: Callable[[str], None] = lambda note: None,
) -> Saved:
    """Run every document in order; the last one's result is ``out``.

    The results of the others stand in a hidden folder beside ``out`` until it is finished; a run that was killed finds
    them again.

    Args:
        tell: Called with each note.

    Raises:
        WeightopsError: as :func:`weightops.merge.build.build` and :func:`weightops.save.save`.
    """
    steps = out.parent / f".{out.name}.steps"
    options = replace(options, text=recipe.text)
    made: dict[str, Path] = {}
    saved: Saved | None = None
    for config in recipe.documents:
        built = build(config, open_models(config, made), options)
        for note in built.plan.notes:
            tell(note)
        last = config is recipe.documents[-1]
        place = out if last else steps / str(config.name)
        if not last and _is_made(place, built):
            made[str(config.name)] = place
            continue
        saved = save(
            built.plan,
            built.package,
            place,
            overwrite=overwrite or not last,
            threads=threads,
            memory=memory,
            progress=progress,
        )
        made[str(config.name)] = place
    shutil.rmtree(steps, ignore_errors=True)
    if saved is None:
        raise WeightopsError("the merge file has no document")
    return saved


def open_models(config: MergeConfig, made: Mapping[str, Path]) -> dict[str, Checkpoint]:
    """Every model that a document names, opened; earlier documents by the folder of their result.

    Raises:
        WeightopsError: the problems of all of them together.
    """
    names = list(config.referenced_models())
    if config.tokenizer is not None and config.tokenizer.source not in ("union", "base"):
        names += [config.tokenizer.source] * (not _only_tokenizer(config.tokenizer.source))
    once = list(dict.fromkeys(names))
    opened = attempt_all(partial(_open, name, made) for name in once)
    return dict(zip(once, opened, strict=True))


def missing_steps(recipe: Recipe) -> tuple[str, ...]:
    """The earlier documents that the last one needs: what a dry run cannot see through."""
    return dependencies(recipe.documents[-1], names_of(recipe.steps))


def _only_tokenizer(source: str) -> bool:
    """Whether it is a local folder without weights: the vocabulary's planner reads that itself."""
    folder = Path(source).expanduser()
    return folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin"))


def _open(name: str, made: Mapping[str, Path]) -> Checkpoint:
    base, _, adapter = name.partition("+")
    if base not in made:
        return open_checkpoint(name)
    opened = open_checkpoint(f"{made[base]}+{adapter}" if adapter else made[base])
    return replace(opened, source=replace(opened.source, spec=name))


def _is_made(place: Path, built: Built) -> bool:
    """Whether an earlier, killed run has finished this step from the same recipe."""
    return bool(place.exists()) and read_json(place / RECORD).get("recipe") == dict(built.plan.recipe)
