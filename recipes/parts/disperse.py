"""Rows dispersed into parts: settings, what keeps rows together, and what there is to say of the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field as Limits

from weightops.errors import Message, Remedy, WeightopsError
from weightops.recipes.floor.checking import check, relation
from weightops.recipes.floor.components import Component, component, kind_of
from weightops.recipes.floor.settings import ModelName, NotNegative
from weightops.recipes.parts.dispersion import Dispersion, Pool, Unit
from weightops.recipes.parts.duplicates import MOST_COMPARED, alike_links, units
from weightops.recipes.parts.row_fields import Field, row_text, texts_of
from weightops.rows.row import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHOWN = 3
"""Examples of each part in a report."""
_CHARACTERS = 100


@dataclass(frozen=True)
class Dispersal:
    """How rows are dispersed into parts.

    Attributes:
        parts: How many.
        method: By what: at random, by length, source, k-means, or conflicting gradients.
        embed: Model whose embeddings are clustered, and drawn in the picture: an encoder, or any causal model.
        field: What is looked at of a row: ``output`` (the assistant's words, the completion, or a plain text),
            ``instruction`` (what comes before them), or both.
        alike: Rows whose embeddings have at least this cosine stay together, where the method reads embeddings.
        seed: Decides whatever is drawn.
    """

    parts: Annotated[int, Limits(ge=2)] = 4
    method: Annotated[Dispersion, Component("dispersing")] = field(
        default_factory=lambda: component("dispersing", "by_random")()
    )
    embed: ModelName | None = None
    field: Field = "output"
    alike: Annotated[float, Limits(gt=0, le=1)] = 0.98
    seed: NotNegative = 0

    @relation("parts")
    def _fits_the_method(self) -> Iterator[str]:
        yield from self.method.misfits(self.parts)

    @relation("embed")
    def _is_there(self) -> Iterator[str]:
        if "embed" in self.method.needs() and self.embed is None:
            yield f"method {kind_of(self.method)} needs embeddings; name an encoder"


@dataclass(frozen=True)
class Dispersed:
    """Rows in parts.

    Attributes:
        parts: Numbers of the rows of each part, in their order; every row is in exactly one.
        texts: What was looked at of each row.
        vectors: Embeddings of the texts, [rows, width]; none where no encoder was named.
        together: Groups of more than one row that stayed together.
        notes: What the user should know.
    """

    parts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    vectors: NDArray[np.float32] | None
    together: tuple[Unit, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What there is to say of the parts: sizes, and of embedded rows those nearest to each part's centre."""
        kept = sum(len(unit) for unit in self.together)
        return {
            "rows": len(self.texts),
            "kept_together": {"groups": len(self.together), "rows": kept},
            "notes": list(self.notes),
            "parts": [self._part(rows) for rows in self.parts],
        }

    def _part(self, rows: Sequence[int]) -> dict[str, Any]:
        characters = sum(len(self.texts[row]) for row in rows)
        described: dict[str, Any] = {"rows": len(rows), "characters": characters, "share": len(rows) / len(self.texts)}
        if self.vectors is None:
            return described
        import numpy as np

        vectors = self.vectors[list(rows)]
        centre = vectors.mean(0)
        cosines = vectors @ (centre / max(float(np.linalg.norm(centre)), 1e-12))
        nearest = [rows[place] for place in np.argsort(-cosines, kind="stable")[:SHOWN]]
        return described | {
            "mean_cosine_to_centre": float(cosines.mean()),
            "nearest": [_line(self.texts[row]) for row in nearest],
        }


def disperse(
    rows: Sequence[Row],
    dispersal: Dispersal,
    base: str | None = None,
    tell: Callable[[str], object] = lambda note: None,
) -> Dispersed:
    """Disperse rows into parts; rows that are duplicates stay together.

    Args:
        rows: All of them.
        dispersal: How.
        base: Model that the parts are to be trained from; needed by methods that read gradients.
        tell: Is told at once what the user should know; it is also in the result.

    Raises:
        WeightopsError: settings that do not fit, rows without the text that is looked at, fewer different rows than
            parts, or rows that cannot be dispersed in this way.
    """
    check(dispersal)
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        tell(note)

    texts, together = looked_at(rows, dispersal, base)
    vectors = _embedded(dispersal, texts, say)
    if "embed" in dispersal.method.needs() and vectors is not None:
        together = _with_alike(rows, vectors, dispersal, say)
    _check_count(together, dispersal.parts)
    pool = Pool(rows, texts, together, dispersal.parts, dispersal.seed, vectors, base, say)
    chosen = dispersal.method.assign(pool)
    members: list[list[int]] = [[] for _ in range(dispersal.parts)]
    for part, unit in zip(chosen, together, strict=True):
        members[part] += unit
    if empty := [number for number, in_part in enumerate(members) if not in_part]:
        raise WeightopsError(f"part {empty[0]} has no rows; ask for fewer parts")
    several = tuple(unit for unit in together if len(unit) > 1)
    if several:
        say(f"{sum(map(len, several))} rows are duplicates of each other; groups that stay together: {len(several)}")
    return Dispersed(tuple(tuple(sorted(in_part)) for in_part in members), tuple(texts), vectors, several, tuple(notes))


def looked_at(rows: Sequence[Row], dispersal: Dispersal, base: str | None) -> tuple[list[str], list[Unit]]:
    """What is looked at of each row, and the rows that stay together by their texts; no model is opened.

    Raises:
        WeightopsError: as :func:`disperse`, as far as it shows without a model.
    """
    if "base" in dispersal.method.needs() and base is None:
        what = f"method {kind_of(dispersal.method)} reads the gradients of the model that the parts are trained from"
        raise WeightopsError(Message(what, Remedy("name it with {}", "base")))
    texts = texts_of(rows, dispersal.field)
    together = units([row_text(row, "both") for row in rows])
    _check_count(together, dispersal.parts)
    return texts, together


def _check_count(together: Sequence[Unit], parts: int) -> None:
    if len(together) < parts:
        rows = sum(map(len, together))
        different = "" if rows == len(together) else f" ({rows} with duplicates)"
        raise WeightopsError(f"{len(together)} different rows{different} for {parts} parts; ask for fewer parts")


def _embedded(dispersal: Dispersal, texts: Sequence[str], say: Callable[[str], object]) -> NDArray[np.float32] | None:
    if dispersal.embed is None:
        return None
    from weightops.recipes.parts.embedding import embed

    return embed(dispersal.embed, texts, say)


def _with_alike(
    rows: Sequence[Row], vectors: NDArray[np.float32], dispersal: Dispersal, say: Callable[[str], object]
) -> list[Unit]:
    """The units with rows joined whose embeddings are alike."""
    if len(rows) > MOST_COMPARED:
        say(f"more than {MOST_COMPARED} rows are not compared by embedding; only equal texts stay together")
        return units([row_text(row, "both") for row in rows])
    return units([row_text(row, "both") for row in rows], alike_links(vectors, dispersal.alike))


def _line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _CHARACTERS else flat[: _CHARACTERS - 1] + "…"
