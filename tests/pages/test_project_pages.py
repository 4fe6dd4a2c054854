"""What the pages and lists of the project say agrees with the code and with each other."""

from __future__ import annotations

import configparser
import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from weightops.guard.card import GuardCard
from weightops.merge.config import reading
from weightops.version import __version__

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def requirements() -> list[str]:
    """Every line of setup.cfg that names a package, of all extras."""
    config = configparser.ConfigParser()
    config.read_string(read("setup.cfg"))
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [line for text in texts for line in text.split("\n") if line and not line.startswith("#")]


def pins(name: str) -> dict[str, str]:
    lines = [line for line in read(name).splitlines() if line and not line.startswith("#")]
    return {normal(line.split("==")[0]): line.split("==")[1] for line in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_package_pins_no_version():
    assert [line for line in requirements() if "==" in line or "~=" in line] == []


def test_transformers_has_an_upper_bound_while_private_names_of_its_trainer_are_used():
    assert "_get_train_sampler" in read("recipes/floor/trainer.py")
    assert [line for line in requirements() if line.startswith("transformers")] == ["transformers>=5.20,<6"]


#: Tools of the people who change weightops: the tests at the lowest versions need none of them.
TOOLS = {
    *("build", "ipykernel", "mkdocs-material", "mkdocstrings-python", "mypy", "nbclient", "openai", "ruff"),
    *("twine", "types-pyyaml"),
}


def test_the_lowest_versions_are_the_declared_bounds():
    lowest = pins("constraints-lowest.txt")
    for line in requirements():
        name, _, bound = line.split(",")[0].partition(">=")
        if normal(name) in TOOLS or normal(name) == "torch":  # torch is the build that is provided
            continue
        tested, wanted = lowest[normal(name)].split("."), bound.split(".")
        assert (tested[: len(wanted)], set(tested[len(wanted) :]) - {"0"}) == (wanted, set()), line


def test_every_requirement_has_a_version_that_is_tested():
    tested = pins("constraints.txt")
    assert [line for line in requirements() if normal(re.split("[><=,]", line)[0]) not in tested] == []


def test_every_option_of_mergekit_is_in_the_table():
    scripts = pytest.importorskip("mergekit.scripts.run_yaml")
    page = read("docs/mergekit.md")
    for parameter in scripts.main.params:
        if parameter.param_type_name == "option":
            names = [*parameter.opts, *parameter.secondary_opts]
            assert any(f"`{name}" in page for name in names), names


def test_every_key_of_a_merge_file_is_in_the_table():
    page = read("docs/mergekit.md")
    assert [key for key in reading._TOP if f"`{key}" not in page] == []


def test_every_key_of_a_guard_card_is_in_the_formats():
    page = read("docs/formats.md")
    assert [field.name for field in dataclasses.fields(GuardCard) if f"| `{field.name}` |" not in page] == []


def test_the_citation_names_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


def test_the_changelog_has_this_version():
    assert re.search(rf"^## \[?(Unreleased\]: )?{re.escape(__version__)}", read("CHANGELOG.md"), re.MULTILINE)


def test_pre_commit_downloads_nothing():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert {hook["language"] for repo in hooks for hook in repo["hooks"]} == {"system"}
