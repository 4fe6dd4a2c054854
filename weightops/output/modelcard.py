"""The model card of an output, in the hub's format: YAML front matter, a description, and how the model was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..io.gguf import ALIASES
from ..io.hub import is_hub_id
from ..io.opened import Source
from ..io.sparse_delta import SparseDelta
from ..io.weights import Weights
from ..version import __version__
from .usage import licence_of, shared_licence, usage

#: Characters with a meaning in Markdown or HTML, and the entities that show them literally.
_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "&<>|`*[]\\~$"}
_PLAIN_NAME = re.compile(r"[\w./@+:=,-]+(?: [\w./@+:=,-]+)*", re.ASCII)


@dataclass(frozen=True)
class Paper:
    """A source to cite: a title and an arXiv id."""

    title: str
    arxiv: str


@dataclass(frozen=True)
class Card:
    """The parts of a model card that are not in the record.

    Attributes:
        title: Heading, plain text.
        text: A paragraph or two, Markdown; names in it are written with :func:`code`, blocks with :func:`fenced`.
        tags: Beside ``merge`` and ``weightops``.
        command: The command line that made the output, where there was one.
        front: Keys of the front matter that differ from a merged model's.
        roles: What a source was used as: guard, base, target. One without a role is a model or an adapter.
    """

    title: str
    text: str
    tags: tuple[str, ...] = ()
    papers: tuple[Paper, ...] = ()
    command: str | None = None
    front: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[Source, str] = field(default_factory=dict)


def plain(text: str) -> str:
    """Escape text that we did not write, so that Markdown shows it literally in a heading, a table or a paragraph.

    >>> plain("a|b <img>")
    'a&#124;b &#60;img&#62;'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.translate(_ENTITIES)


def code(name: str) -> str:
    """A name that we did not write, as code, for a table or a paragraph.

    >>> code("org/name@main"), code("a`b")
    ('`org/name@main`', '<code>a&#96;b</code>')
    """
    return f"`{name}`" if _PLAIN_NAME.fullmatch(name) else f"<code>{plain(name)}</code>"


def fenced(text: str, language: str = "") -> str:
    """Text of several lines as a block of code, even if the text contains fences.

    >>> fenced("a ``` b").splitlines()[0]
    '````'
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def render(
    card: Card,
    record: Mapping[str, Any],
    sources: Sequence[Source],
    files: Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown.

    Args:
        record: What :func:`weightops.output.provenance.record` gives.
        sources: What the output was made of, in the record's order; those that the hub knows become ``base_model``.
        files: Names of the files that lie beside the weights.
        config: The output's ``config.json``.
    """
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "weightops", *card.tags]}
    if known := list(dict.fromkeys(name for source in sources if (name := hub_name(source)))):
        front |= {"base_model": known, "base_model_relation": "merge"}
    licences = [_licence(source) for source in sources]
    if licence := shared_licence(licences):
        front["license"] = licence
    front |= card.front
    recipe = json.dumps(record["recipe"], indent=2, ensure_ascii=False)
    recipe_text = fenced(card.command) if card.command else fenced(recipe, "json")
    cited = "".join(f"\n- {plain(paper.title)}, arXiv {plain(paper.arxiv)}" for paper in card.papers)
    use = usage(files, config or {})
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---\n"
        f"# {plain(card.title)}\n\n{card.text}\n\n"
        + (f"## How to use it\n\nIn this folder, or with its id on the hub for the dot:\n\n{use}\n\n" if use else "")
        + f"## How it was made\n\n{recipe_text}\n\n{_table(card, record['sources'], sources, licences)}\n\n"
        + ("" if licence or not sources else f"{_NO_LICENCE}\n\n")
        + f"Made with weightops {__version__}; `weightops.json` holds the whole recipe and the digests, "
        f"`weightops verify` checks them.\n" + (f"\n## Papers\n{cited}\n" if cited else "")
    )


_NO_LICENCE = (
    "This card states no licence: its sources do not all state the same one. The licence of each source applies."
)


def hub_name(source: Source) -> str | None:
    """A source's id on the hub; ``None`` of a local folder: a guess would link to a stranger's model."""
    if source.spec in ALIASES:
        return ALIASES[source.spec].hub
    from_hub = source.revision is not None if isinstance(source, Weights) else not Path(source.spec).exists()
    return source.spec.split("@")[0] if from_hub and is_hub_id(source.spec) else None


def _kind(source: Source) -> str:
    if isinstance(source, Weights):
        return "model"
    return "sparse delta" if isinstance(source, SparseDelta) else "adapter"


def _licence(source: Source) -> str | None:
    return ALIASES[source.spec].licence if source.spec in ALIASES else licence_of(source.folder)


def _table(
    card: Card,
    entries: Sequence[Mapping[str, Any]],
    sources: Sequence[Source],
    licences: Sequence[str | None],
) -> str:
    """A row for each source: its role, what it was opened by, and its licence."""
    head = ["| role | source | revision | licence | content |", "|---|---|---|---|---|"]
    rows = [
        f"| {plain(card.roles.get(source) or _kind(source))} "
        f"| {code(entry['name'])} | {plain(entry.get('revision', ''))} | {code(licence) if licence else 'not stated'} "
        f"| {code(entry['content'][:23])} |"
        for entry, source, licence in zip(entries, sources, licences, strict=True)
    ]
    return "\n".join([*head, *dict.fromkeys(rows)])
