"""The model card of an output, in the hub's format: YAML front matter, then what it is and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..io.adapter import Adapter
from ..io.gguf import ALIASES
from ..io.hub import is_hub_id
from ..io.weights import Weights
from ..version import __version__


@dataclass(frozen=True)
class Paper:
    """A source to cite: a title and an arXiv id."""

    title: str
    arxiv: str


@dataclass(frozen=True)
class Card:
    """What a card says beyond what the record does.

    Attributes:
        title: Heading.
        text: A paragraph or two, Markdown.
        tags: Beside ``merge`` and ``weightops``.
        command: The command line that made the output, where there was one.
    """

    title: str
    text: str
    tags: tuple[str, ...] = ()
    papers: tuple[Paper, ...] = ()
    command: str | None = None


def render(card: Card, record: Mapping[str, Any], sources: Sequence[Weights | Adapter]) -> str:
    """The card as Markdown.

    Args:
        record: What :func:`weightops.output.provenance.record` gives.
        sources: What the output was made of; those that the hub knows become ``base_model``.
    """
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "weightops", *card.tags]}
    if known := list(dict.fromkeys(_hub_names(sources))):
        front |= {"base_model": known, "base_model_relation": "merge"}
    rows = "\n".join(f"| `{s['name']}` | {s.get('revision', '')} | `{s['content'][:23]}` |" for s in record["sources"])
    how = (
        f"```\n{card.command}\n```"
        if card.command
        else f"```json\n{json.dumps(record['recipe'], indent=2, ensure_ascii=False)}\n```"
    )
    cited = "".join(f"\n- {paper.title}, arXiv {paper.arxiv}" for paper in card.papers)
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---\n"
        f"# {card.title}\n\n{card.text}\n\n## How it was made\n\n{how}\n\n"
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
