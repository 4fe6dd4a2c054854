"""The model card of an output, in the hub's format: YAML front matter, then what it is and how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..io.adapter import Adapter
from ..io.gguf import ALIASES
from ..io.hub import is_hub_id
from ..io.weights import Weights
from ..version import __version__

#: Characters that mean something to Markdown or HTML, as the entities that only show them.
_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "&<>|`*[]\\~$"}
_PLAIN_NAME = re.compile(r"[\w./@+:=,-]+(?: [\w./@+:=,-]+)*", re.ASCII)


@dataclass(frozen=True)
class Paper:
    """A source to cite: a title and an arXiv id."""

    title: str
    arxiv: str


@dataclass(frozen=True)
class Card:
    """What a card says beyond what the record does.

    Attributes:
        title: Heading, plain text.
        text: A paragraph or two, Markdown; names in it are written with :func:`code`, blocks with :func:`fenced`.
        tags: Beside ``merge`` and ``weightops``.
        command: The command line that made the output, where there was one.
        front: Keys of the front matter that differ from a merged model's.
    """

    title: str
    text: str
    tags: tuple[str, ...] = ()
    papers: tuple[Paper, ...] = ()
    command: str | None = None
    front: Mapping[str, Any] = field(default_factory=dict)


def plain(text: str) -> str:
    """A stranger's text as Markdown that shows it and does nothing else, in a heading, a table or a paragraph.

    >>> plain("a|b <img>")
    'a&#124;b &#60;img&#62;'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.translate(_ENTITIES)


def code(name: str) -> str:
    """A stranger's name as code, in a table or a paragraph.

    >>> code("org/name@main"), code("a`b")
    ('`org/name@main`', '<code>a&#96;b</code>')
    """
    return f"`{name}`" if _PLAIN_NAME.fullmatch(name) else f"<code>{plain(name)}</code>"


def fenced(text: str, language: str = "") -> str:
    """Text of several lines as a block of code, whatever fences it holds.

    >>> fenced("a ``` b").splitlines()[0]
    '````'
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def render(card: Card, record: Mapping[str, Any], sources: Sequence[Weights | Adapter]) -> str:
    """The card as Markdown.

    Args:
        record: What :func:`weightops.output.provenance.record` gives.
        sources: What the output was made of; those that the hub knows become ``base_model``.
    """
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "weightops", *card.tags]}
    if known := list(dict.fromkeys(_hub_names(sources))):
        front |= {"base_model": known, "base_model_relation": "merge"}
    front |= card.front
    rows = "\n".join(
        f"| {code(s['name'])} | {plain(s.get('revision', ''))} | {code(s['content'][:23])} |" for s in record["sources"]
    )
    recipe = json.dumps(record["recipe"], indent=2, ensure_ascii=False)
    how = fenced(card.command) if card.command else fenced(recipe, "json")
    cited = "".join(f"\n- {plain(paper.title)}, arXiv {plain(paper.arxiv)}" for paper in card.papers)
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---\n"
        f"# {plain(card.title)}\n\n{card.text}\n\n## How it was made\n\n{how}\n\n"
        f"| source | revision | content |\n|---|---|---|\n{rows}\n\n"
        f"Made with weightops {__version__}; `weightops.json` holds the whole recipe and the digests, "
        f"`weightops verify` checks them.\n" + (f"\n## Papers\n{cited}\n" if cited else "")
    )


def _hub_names(sources: Iterable[Weights | Adapter]) -> Iterable[str]:
    """The sources by the names the hub has for them; a local folder has none, and a guess would link to a stranger."""
    for source in sources:
        local = isinstance(source, Weights) and source.revision is None
        if source.spec in ALIASES:
            yield ALIASES[source.spec].hub
        elif is_hub_id(source.spec) and not local:
            yield source.spec.split("@")[0]
