"""The card is in the hub's format, and names as base models only what the hub knows."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_chat import write_chat_model

from weightops.io.adapter import Adapter
from weightops.io.gguf import ALIASES, Alias
from weightops.io.weights import Weights
from weightops.output.modelcard import Card, Paper, code, fenced, plain, render
from weightops.output.usage import licence_of

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


def record(*sources: Weights | Adapter) -> dict[str, Any]:
    entries = [
        {"name": s.spec, "content": "blake3:" + "0" * 64}
        | ({"revision": s.revision} if getattr(s, "revision", None) else {})
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
        "| model | `org/name` | abcdef | not stated | `blake3:0000",
        "- Guard Vector, arXiv 2509.23381",
    ):
        assert part in text, part


def test_without_a_command_the_recipe_stands_in_the_card_and_without_papers_no_heading():
    text = render(Card("T", "t"), record(), [])
    assert '```json\n{\n  "kind": "affine",\n  "scale": 0.5\n}\n```' in text
    assert "## Papers" not in text


def with_card(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\n---\n# A", "mit"),
        ("---\ntags: [a]\nlicense: 'Apache-2.0'\nbase_model: b\n---\n", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("# A\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: [mit, other]\n---\n", None),
        ("---\nlicense: <b>\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_a_licence_is_what_the_front_matter_of_a_folders_card_states(text, licence, tmp_path):
    assert licence_of(with_card(tmp_path / "model", text)) == licence
    assert licence_of(tmp_path) is None
    (tmp_path / "link").mkdir()
    (tmp_path / "link/README.md").symlink_to(tmp_path / "model/README.md")
    assert licence_of(tmp_path / "link") is None  # a link out of a source is not followed


@pytest.mark.parametrize(("second", "licence"), [("mit", "mit"), ("gpl-3.0", None), (None, None)])
def test_the_card_has_a_licence_only_where_all_sources_state_the_same_one(second, licence, tmp_path):
    folders = [
        with_card(tmp_path / name, f"---\nlicense: {stated}\n---\n" if stated else "")
        for name, stated in (("a", "mit"), ("b", second))
    ]
    sources = [Weights(str(folder), {}, folder) for folder in folders]
    text = render(CARD, record(*sources), sources)
    assert front(text).get("license") == licence
    assert ("states no licence" in text) is (licence is None)
    assert text.count("| `mit` |") == (2 if licence else 1)


def test_each_source_is_named_once_with_its_role(tmp_path):
    base, other = weights("org/base", "1"), Weights("./other", {}, tmp_path)
    lora = Adapter("./lora", tmp_path / "lora", {})
    text = render(replace(CARD, roles={base: "base", other: "guard"}), record(base, other, lora), [base, other, lora])
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ") and "role" not in line]
    assert rows == [[" base ", " `org/base` "], [" guard ", " `./other` "], [" adapter ", " `./lora` "]]


def test_a_local_adapter_that_looks_like_a_hub_id_is_no_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = Adapter("org/lora", tmp_path / "org/lora", {})
    assert front(render(CARD, record(adapter), [adapter]))["base_model"] == ["org/lora"]
    (tmp_path / "org/lora").mkdir(parents=True)
    assert "base_model" not in front(render(CARD, record(adapter), [adapter]))


def test_the_code_of_a_card_runs_in_the_outputs_folder(tmp_path, monkeypatch, capsys):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    import weightops as wo

    folder = write_chat_model(tmp_path / "model")
    other = write_chat_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file(
        {n: -t if "q_proj" in n else t for n, t in tensors.items()}, other / "model.safetensors", {"format": "pt"}
    )
    mixed = wo.open(folder) + 0.5 * (wo.open(other) - wo.open(folder))
    monkeypatch.chdir(mixed.save(tmp_path / "plain", progress=False))
    plain_card = Path("README.md").read_text()
    scope: dict[str, Any] = {}
    exec(python_of(plain_card), scope)
    assert isinstance(scope["model"], torch.nn.Module)
    from weightops.guard.presets import PRESETS

    PRESETS["guard-vector"].card(AutoTokenizer.from_pretrained(other)).write(other)
    monkeypatch.chdir(tmp_path)
    composed = wo.compose_guard(wo.open(other), wo.open(folder), wo.open(folder))
    monkeypatch.chdir(composed.save(tmp_path / "guard", progress=False))
    card = Path("README.md").read_text()
    assert 'weightops guard score . "' in card
    capsys.readouterr()
    exec(python_of(card), {})
    assert 0 <= float(capsys.readouterr().out.strip("[]\n ")) <= 1
    assert "| base, target |" in card
    assert "| guard |" in card


def python_of(text: str) -> str:
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1]


@given(st.lists(st.sampled_from(["org/a", "org/b@v1", "./mine", "/data/x", "x y", "a`|b"]), max_size=4))
def test_the_hubs_own_reader_takes_every_card(specs):
    """The checks that huggingface_hub makes without the network: the front matter, and the form of base models."""
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import validate_repo_id

    sources = [weights(spec, "abc" if spec.startswith("org/") else None) for spec in dict.fromkeys(specs)]
    data = ModelCard(render(CARD, record(*sources), sources)).data
    for name in data.base_model or []:
        validate_repo_id(name)
    assert data.tags == ["merge", "weightops", "guard"]


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
                assert line.count("|") == 6, line
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
