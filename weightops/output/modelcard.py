"""The model card of an output, in the hub's format: YAML front matter, a description, and how the model was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..io.adapter import Adapter
from ..io.gguf import ALIASES
from ..io.hub import is_hub_id
from ..io.weights import Weights
from ..version import __version__

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
        tags: Tags besides ``merge`` and ``weightops``.
        papers: Papers to cite.
        command: The command line that made the output, if there was one.
    """

    title: str
    text: str
    tags: tuple[str, ...] = ()
    papers: tuple[Paper, ...] = ()
    command: str | None = None


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


def render(card: Card, record: Mapping[str, Any], sources: Sequence[Weights | Adapter]) -> str:
    """The card as Markdown.

    Args:
        record: The result of :func:`weightops.output.provenance.record`.
        sources: The models and adapters that the output was made of; those from the hub become ``base_model``.
    """
    front_matter: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "weightops", *card.tags]}
    if hub_names := list(dict.fromkeys(_hub_names(sources))):
        front_matter |= {"base_model": hub_names, "base_model_relation": "merge"}
    rows = "\n".join(
        f"| {code(s['name'])} | {plain(s.get('revision', ''))} | {code(s['content'][:23])} |" for s in record["sources"]
    )
    recipe = json.dumps(record["recipe"], indent=2, ensure_ascii=False)
    recipe_text = fenced(card.command) if card.command else fenced(recipe, "json")
    cited = "".join(f"\n- {plain(paper.title)}, arXiv {plain(paper.arxiv)}" for paper in card.papers)
    return (
        f"---\n{yaml.safe_dump(front_matter, sort_keys=True, allow_unicode=True)}---\n"
        f"# {plain(card.title)}\n\n{card.text}\n\n## How it was made\n\n{recipe_text}\n\n"
        f"| source | revision | content |\n|---|---|---|\n{rows}\n\n"
        f"Made with weightops {__version__}; `weightops.json` contains the whole recipe and the digests, "
        f"`weightops verify` checks them.\n" + (f"\n## Papers\n{cited}\n" if cited else "")
    )


def _hub_names(sources: Iterable[Weights | Adapter]) -> Iterable[str]:
    """The sources' names on the hub. A local folder has none: a guess could link to someone else's model."""
    for source in sources:
        local = isinstance(source, Weights) and source.revision is None
        if source.spec in ALIASES:
            yield ALIASES[source.spec].hub
        elif is_hub_id(source.spec) and not local:
            yield source.spec.split("@")[0]
