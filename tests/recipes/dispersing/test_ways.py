"""Every way to disperse keeps the laws of a dispersal; each does what it says."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_chat import write_chat_model
from tiny_encoder import write_encoder

from weightops.errors import WeightopsError
from weightops.recipes.dispersing.by_conflict import ByConflict, sign_patterns
from weightops.recipes.dispersing.by_kmeans import ByKmeans
from weightops.recipes.dispersing.by_length import ByLength
from weightops.recipes.dispersing.by_random import ByRandom
from weightops.recipes.dispersing.by_source import BySource
from weightops.recipes.floor.components import component, kinds
from weightops.recipes.parts.disperse import Dispersal, disperse
from weightops.recipes.parts.dispersion import Dispersion
from weightops.recipes.parts.group_gradients import _sketch, group_gradients
from weightops.recipes.parts.row_fields import texts_of
from weightops.rows.row import Row

WORDS = ("red", "green", "blue", "one", "two", "three", "car", "boat")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(write_encoder(tmp_path_factory.mktemp("encoder"), " ".join(WORDS)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_chat_model(tmp_path_factory.mktemp("base")))


def rows_of(texts, sources=None):
    sources = sources or ["a"] * len(texts)
    pairs = zip(texts, sources, strict=True)
    return [Row.of(f"r, line {n}", {"text": text, "task": source}) for n, (text, source) in enumerate(pairs, 1)]


def many(count, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(2, 9))) + f" x{number}" for number in range(count)]


ROWS = st.lists(st.sampled_from(many(8)), min_size=12, max_size=40)


@given(ROWS, st.integers(0, 5), st.data())
def test_every_row_is_in_exactly_one_part_and_duplicates_are_together(texts, seed, data):
    sources = data.draw(st.lists(st.sampled_from("abc"), min_size=len(texts), max_size=len(texts)))
    rows, parts = rows_of(texts, sources), data.draw(st.integers(2, 3))
    assume(len(set(texts)) >= parts)
    assume(len({sources[texts.index(text)] for text in texts}) >= parts)
    for method in (ByRandom(), ByLength(), BySource("task")):
        made = disperse(rows, Dispersal(parts, method, seed=seed))
        assert sorted(row for part in made.parts for row in part) == list(range(len(rows)))
        assert all(part == tuple(sorted(part)) and part for part in made.parts)
        of = {row: number for number, part in enumerate(made.parts) for row in part}
        assert len({(text, of[row]) for row, text in enumerate(texts)}) == len(set(texts))
        assert made == disperse(rows, Dispersal(parts, method, seed=seed))


@pytest.mark.parametrize("method", [ByKmeans(), ByKmeans(balanced=True), ByConflict("task", sample=4),
                                    ByConflict(clusters=8, sample=4)], ids=str)  # fmt: skip
def test_ways_that_need_a_model_keep_the_same_laws(method, encoder, base):
    texts = many(48)
    rows = rows_of([*texts, *texts[:3]], [*("abcdefgh" * 6), *"hhh"])
    dispersal = Dispersal(4, method, embed=encoder, alike=0.9999)
    made = disperse(rows, dispersal, base)
    assert sorted(row for part in made.parts for row in part) == list(range(51))
    of = {row: number for number, part in enumerate(made.parts) for row in part}
    assert [of[row] for row in range(48, 51)] == [of[row] for row in range(3)]
    assert made.parts == disperse(rows, dispersal, base).parts
    if method == ByKmeans(balanced=True):
        assert {len(part) for part in made.parts} == {12, 13}
    if method == ByConflict("task", sample=4):
        assert all(len({of[row] for row in range(source, 48, 8)}) == 1 for source in range(8))


def test_the_seed_decides_a_random_dispersal():
    rows = rows_of(many(40))
    assert disperse(rows, Dispersal(seed=0)).parts != disperse(rows, Dispersal(seed=1)).parts


def test_by_length_the_parts_are_in_order_of_length():
    made = disperse(rows_of(many(21)), Dispersal(3, ByLength()))
    lengths = [[len(made.texts[row]) for row in part] for part in made.parts]
    assert max(lengths[0]) <= min(lengths[1])
    assert max(lengths[1]) <= min(lengths[2])
    assert [len(part) for part in made.parts] == [7, 7, 7]


def test_kmeans_finds_texts_of_one_kind(encoder):
    kinds_of = ["red red red red", "one two one two", "boat boat car boat boat boat"]
    texts = [f"{kinds_of[number % 3]}{' red' * (number // 3)}" for number in range(9)]
    made = disperse(rows_of(texts), Dispersal(3, ByKmeans(), embed=encoder, alike=1.0))
    cosines = made.vectors @ made.vectors.T
    within = [cosines[np.ix_(part, part)].mean() for part in made.parts]
    across = [cosines[np.ix_(one, other)].mean() for one in made.parts for other in made.parts if one != other]
    assert min(within) > max(across)


def test_rows_alike_by_their_embeddings_stay_together_and_are_counted(encoder):
    texts = [*many(10), "red unheard", "red unknown"]  # one embedding: both words are [UNK]
    notes = []
    made = disperse(rows_of(texts), Dispersal(2, ByKmeans(), embed=encoder, alike=0.99999), tell=notes.append)
    assert (10, 11) in made.together
    assert any("duplicates of each other" in note for note in notes)


def test_sign_patterns_by_hand():
    """Two directions of conflict: the first component is the larger one; signs split each."""
    vectors = np.array([[2.0, 1, 5], [2, -1, 5], [-2, 1, 5], [-2, -1, 5]])
    chosen = sign_patterns(vectors, 4)
    assert sorted(chosen) == [0, 1, 2, 3]
    assert {chosen[0] & 1, chosen[1] & 1} != {chosen[2] & 1, chosen[3] & 1}
    assert (chosen[0] & 2) == (chosen[2] & 2) != (chosen[1] & 2) == (chosen[3] & 2)
    assert sign_patterns(vectors * [[1], [9], [1], [0.1]], 4) == chosen  # lengths do not matter
    with pytest.raises(WeightopsError, match="only 3 of 4 sign patterns"):
        sign_patterns(np.array([[3.0, 0.2], [-3.0, 0.2], [0.5, 1.0]]), 4)


def test_gradients_that_do_not_differ_are_refused():
    with pytest.raises(WeightopsError, match="differ in 0 directions, 2 parts need 1"):
        sign_patterns(np.ones((3, 5)), 2)


def test_a_sketch_keeps_inner_products_in_expectation():
    import torch

    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 50, generator=draw, dtype=torch.float64)
    products = [float(_sketch({"w": one}, 16, seed) @ _sketch({"w": other}, 16, seed)) for seed in range(2000)]
    expected, spread = float(one @ other), float(one.norm() * other.norm()) / 4
    assert abs(np.mean(products) - expected) < 5 * spread / 2000**0.5


def test_groups_with_opposite_aims_have_gradients_that_differ_most(base):
    """Two groups that learn one answer and two that learn another: the first component tells the answers apart."""
    groups = {
        f"{answer} {half}": [
            Row.of("r", {"prompt": f"question {number} {half}", "completion": answer * 3}) for number in range(6)
        ]
        for answer in ("safe", "zzzz")
        for half in ("one", "two")
    }
    vectors = group_gradients(base, groups, sample=4, rank=4, tokens=128, width=512, seed=0)
    assert vectors.shape == (4, 512)
    chosen = sign_patterns(vectors, 2)
    assert chosen[0] == chosen[1] != chosen[2] == chosen[3]


@pytest.mark.parametrize(
    ("method", "more", "problem"),
    [
        (ByRandom(), {"parts": 30}, "24 different rows for 30 parts; ask for fewer parts"),
        (ByRandom(), {"parts": 1}, "parts: must be at least 2"),
        (ByKmeans(), {}, "embed: method by_kmeans needs embeddings; name an encoder"),
        (ByKmeans(), {"embed": "no/such-place/here"}, "no such file or folder"),
        (BySource("nowhere"), {}, "no row has a field 'nowhere'; other fields are 'task'"),
        (BySource("task"), {"parts": 5}, "task names 4 sources for 5 parts"),
        (ByConflict("task"), {"parts": 3}, "parts: must be a power of two, because parts are sign patterns; found 3"),
        (ByConflict("task"), {"parts": 8}, "4 sources or clusters for 8 parts"),
        (ByConflict(), {}, "embed: method by_conflict needs embeddings"),
        (ByRandom(), {"field": "instruction"}, "lines 1-24: its instruction is empty"),
    ],
)
def test_what_does_not_go_together_is_refused(method, more, problem, base):
    rows = rows_of(many(24), [*("abcd" * 6)])
    with pytest.raises(WeightopsError, match=problem):
        disperse(rows, Dispersal(**{"parts": 4, "method": method} | more), base)


def test_one_source_makes_no_conflict_and_a_base_is_needed(base):
    rows = rows_of(many(8))
    with pytest.raises(WeightopsError, match="1 source or cluster for 2 parts"):
        disperse(rows, Dispersal(2, ByConflict("task")), base)
    with pytest.raises(WeightopsError, match="reads the gradients of the model.*; name it with base"):
        disperse(rows, Dispersal(2, ByConflict("task")))
    rows[3] = Row.of("r, line 4", {"text": "b", "task": ["list"]})
    with pytest.raises(WeightopsError, match="r, line 4: 'task': must be a word or a number .*found \\['list'\\]"):
        disperse(rows, Dispersal(2, ByConflict("task")), base)


def test_empty_texts_are_refused_by_their_place():
    rows = [Row.of(f"r, line {number}", record) for number, record in enumerate(
        [{"text": "a"}, {"text": " \n"}, {"prompt": "a", "completion": ""}, {"other": 1}], 1)]  # fmt: skip
    with pytest.raises(WeightopsError) as refused:
        disperse(rows, Dispersal(2))
    assert [problem.split(";")[0] for problem in refused.value.problems] == [
        "r, lines 2-3: its output is empty", "r, line 4: needs messages, prompt and completion, or text",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", kinds("dispersing"))
def test_a_way_is_a_dispersion_whose_file_is_named_by_what_it_goes(kind):
    assert kind.startswith("by_")
    made = component("dispersing", kind)
    assert Dispersion in made.__mro__
    assert made.assign is not Dispersion.assign


def test_what_is_asked_and_what_is_answered_are_told_apart():
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": [{"type": "text", "text": "so"}]}]
    rows = [Row.of("r", record) for record in (
        {"messages": turns}, {"prompt": "why", "completion": "so"}, {"prompt": turns[:1], "completion": turns[1:]})]  # fmt: skip
    assert texts_of(rows, "output") == ["so"] * 3
    assert texts_of(rows, "instruction") == ["why"] * 3
    assert texts_of(rows, "both") == ["why\nso"] * 3
