"""The card is in the hub's format, and names as base models only what the hub knows."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from weightops.io.gguf import ALIASES, Alias
from weightops.io.weights import Weights
from weightops.output.modelcard import Card, Paper, code, fenced, plain, render

CARD = Card(
    "A title: with a colon", "Some text.", ("guard",), (Paper("Guard Vector", "2509.23381"),), "weightops x --out 'a b'"
)


def weights(spec: str, revision: str | None = None) -> Weights:
    return Weights(spec, {}, Path("folder"), revision)


def front(text: str) -> dict[str, Any]:
    """The YAML before the text."""
    begin, head, _ = text.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(head)


def record(*sources: Weights) -> dict[str, Any]:
    entries = [
        {"name": s.spec, "content": "blake3:" + "0" * 64} | ({"revision": s.revision} if s.revision else {})
        for s in sources
    ]
    return {"recipe": {"kind": "affine", "scale": 0.5}, "sources": entries}


@pytest.mark.parametrize(
    ("source", "known"),
    [
        (weights("org/name", "abc"), ["org/name"]),
        (weights("org/name@v1", "abc"), ["org/name"]),
        (weights("smollm2-135m-instruct"), ["HuggingFaceTB/SmolLM2-135M-Instruct"]),
        (weights("org/name"), None),
        (weights("./org/name"), None),
        (weights("/data/model"), None),
    ],
)
def test_only_what_came_from_the_hub_is_a_base_model(source, known):
    head = front(render(CARD, record(source), [source]))
    assert head.get("base_model") == known
    assert head.get("base_model_relation") == (known and "merge")


def test_an_alias_is_named_as_the_hub_names_it(monkeypatch):
    monkeypatch.setitem(ALIASES, "tiny-model", Alias("tiny_model", "t.gguf", package="tiny-model", hub="org/tiny"))
    for alias, known in ALIASES.items():
        assert front(render(CARD, record(weights(alias)), [weights(alias)]))["base_model"] == [known.hub]


def test_base_models_stand_once_each_in_order():
    sources = [weights("org/b", "1"), weights("org/a", "2"), weights("org/b@main", "1"), weights("./mine")]
    assert front(render(CARD, record(*sources), sources))["base_model"] == ["org/b", "org/a"]


def test_the_card_says_how_it_was_made_from_what_and_whom_to_cite():
    source = weights("org/name", "abcdef")
    text = render(CARD, record(source), [source])
    assert front(text)["tags"] == ["merge", "weightops", "guard"]
    for part in (
        "# A title: with a colon",
        "```\nweightops x --out 'a b'\n```",
        "| `org/name` | abcdef | `blake3:0000",
        "- Guard Vector, arXiv 2509.23381",
    ):
        assert part in text, part


def test_without_a_command_the_recipe_stands_in_the_card_and_without_papers_no_heading():
    text = render(Card("T", "t"), record(), [])
    assert '```json\n{\n  "kind": "affine",\n  "scale": 0.5\n}\n```' in text
    assert "## Papers" not in text


HOSTILE = ("<script>alert(1)</script>", "a|b|c", "a`b``c", "![x](http://evil.example/x.png)", "a\n# b\n", "\\`", "a](javascript:x)", "\ud800")  # fmt: skip


def test_hostile_names_are_shown_and_do_nothing_else():
    for name in HOSTILE:
        source = weights(name, name)
        card = Card(
            name, f"Made from {code(name)}.", papers=(Paper(name, name),), command=f"weightops {name}\n```\n<b>"
        )
        text = render(card, record(source), [source])
        _, head, body = text.split("---\n", 2)
        assert yaml.safe_load(head)["tags"] == ["merge", "weightops"]
        block = body.index("````\nweightops")
        outside = body[:block] + body[body.index("\n````", block + 5) + 5 :]
        for line in outside.replace("<code>", "").replace("</code>", "").splitlines():
            assert "<" not in line, line
            assert "](" not in line, line
            assert line.count("`") % 2 == 0, line
            if line.startswith("|"):
                assert line.count("|") == 4, line
        assert [line for line in outside.splitlines() if line.startswith("#")] == [
            f"# {plain(name)}", "## How it was made", "## Papers"
        ]  # fmt: skip


@given(st.text())
@example("a|b`c")
def test_a_name_is_read_back_from_what_a_browser_shows(name):
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert html.unescape(plain(name)) == printable
    shown = code(name)
    assert "|" not in shown
    assert html.unescape(shown.removeprefix("<code>").removesuffix("</code>").strip("`")) == printable


@given(st.text("`~ab\n", max_size=30))
def test_no_line_of_a_block_closes_it(text):
    fence, *lines, closing = fenced(text, "yaml").split("\n")
    assert fence == closing + "yaml"
    assert not any(line.strip().startswith(closing) for line in lines)
