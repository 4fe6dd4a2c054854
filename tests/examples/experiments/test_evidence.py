"""Every page of evidence in docs/ holds the tables of its results, and is written only where its marks are."""

from dataclasses import replace

import pytest

from examples.experiments import scale
from examples.experiments.disperse import page as disperse_page
from examples.experiments.evidence import mean_and_range
from examples.experiments.sorted import page as sorted_page
from examples.experiments.sparse import sparse_page
from examples.experiments.two_recipes import skill_page
from weightops.errors import WeightopsError

PAGES = [module.PAGE for module in (disperse_page, scale, skill_page, sorted_page, sparse_page)]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.file.stem)


@every_page
def test_the_published_tables_are_those_of_the_published_results(page):
    text = page.file.read_text("utf-8")
    tables = page.tables(page.load())
    assert tables
    for name, table in tables.items():
        assert f"<!-- {name} -->\n{table}<!-- end of {name} -->" in text, name


@every_page
def test_a_page_without_marks_is_refused_and_left_as_it_is(page, tmp_path):
    first, *_ = page.tables(page.load())
    copy = replace(page, file=tmp_path / "page.md")
    copy.file.write_text("nothing")
    with pytest.raises(WeightopsError, match=f"has no marks <!-- {first} -->"):
        copy.write(page.load())
    assert copy.file.read_text() == "nothing"


def test_a_mean_is_followed_by_the_range_of_several_values():
    assert mean_and_range([1.0, 2.0]) == "1.500 (1.000 to 2.000)"
    assert mean_and_range([1.0], 1) == "1.0"
    assert mean_and_range([]) == ""
