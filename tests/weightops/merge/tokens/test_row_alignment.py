"""Rows of an aligned vocabulary: the laws of reading them, and mergekit's own embeddings as oracle."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.common import ImmutableMap, ModelReference
from mergekit.tokenizer.config import TokenizerConfig as TheirConfig
from mergekit.tokenizer.embed import PermutedVocabulary
from tiny_vocabularies import reader

from weightops.merge.tokens.row_alignment import Alignment, gather_rows, mean_row

MODELS = ("a", "b", "c")


@st.composite
def alignments(draw):
    """An output of up to 12 rows over three models of 9 rows, some padding at its end, some rows chosen or forced."""
    size = draw(st.integers(1, 12))
    rows_in = {m: np.array(draw(st.lists(st.integers(-1, 8), min_size=size, max_size=size)), np.int64) for m in MODELS}
    forced = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    named = np.arange(size) < draw(st.integers(1, size))
    pair = st.one_of(st.none(), st.tuples(st.sampled_from(MODELS), st.integers(0, 8)))
    choices = {i: choice for i, choice in draw(st.dictionaries(st.integers(0, size - 1), pair)).items() if named[i]}
    return Alignment(rows_in, forced & named, named, choices, draw(st.sampled_from((None, *MODELS))))


def matrices(seed: int = 0, rows: int = 9, width: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {m: generator.normal(size=(rows, width)).astype(np.float32) for m in MODELS}


def expected_row(alignment: Alignment, model: str, row: int, data: dict[str, np.ndarray]) -> np.ndarray | None:
    """The rule of the module's first paragraph, word for word; ``None`` for a filled row."""
    if alignment.rows_in[model][row] >= 0 and not alignment.forced[row]:
        return data[model][alignment.rows_in[model][row]]
    if row in alignment.choices:
        choice = alignment.choices[row]
        return np.zeros(3) if choice is None else data[choice[0]][choice[1]]
    having = [m for m in alignment.rows_in if alignment.rows_in[m][row] >= 0]
    if not having:
        return np.zeros(3) if alignment.named[row] else None
    having = [alignment.base] if alignment.base in having else having
    return np.mean([data[m][alignment.rows_in[m][row]].astype(np.float64) for m in having], 0)


@given(alignments(), st.sampled_from(MODELS))
def test_a_gathered_row_is_the_models_own_else_the_rules(alignment, model):
    data, fill = matrices(), np.full(3, 7, np.float32)
    got = gather_rows(alignment, model, 0, alignment.size, reader(data), (3,), fill)
    for row in range(alignment.size):
        wanted = expected_row(alignment, model, row, data)
        np.testing.assert_allclose(got[row], fill if wanted is None else wanted, rtol=1e-6)


@given(alignments(), st.sampled_from(MODELS), st.lists(st.integers(0, 12)))
def test_blocks_of_any_size_give_the_same_bits(alignment, model, cuts):
    read, fill = reader(matrices()), np.ones(3, np.float32)
    whole = gather_rows(alignment, model, 0, alignment.size, read, (3,), fill)
    edges = sorted({0, alignment.size, *(cut for cut in cuts if cut < alignment.size)})
    blocks = [gather_rows(alignment, model, lo, hi, read, (3,), fill) for lo, hi in pairwise(edges)]
    assert np.concatenate(blocks).tobytes() == whole.tobytes()


def test_consecutive_rows_are_one_read_and_a_gap_makes_two():
    rows_in = {"a": np.array([3, 4, 5, 8, 0, 1])}
    alignment = Alignment(rows_in, np.zeros(6, bool), np.ones(6, bool), {})
    calls: list = []
    gather_rows(alignment, "a", 0, 6, reader(matrices(), calls), (3,))
    assert calls == [("a", range(0, 2)), ("a", range(3, 6)), ("a", range(8, 9))]


def test_a_bias_is_gathered_as_the_rows_are():
    rows_in = {"a": np.array([2, -1, 0]), "b": np.array([-1, 1, 1])}
    alignment = Alignment(rows_in, np.zeros(3, bool), np.ones(3, bool), {})
    data = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 20.0])}
    assert gather_rows(alignment, "a", 0, 3, reader(data)).tolist() == [3.0, 20.0, 1.0]
    assert gather_rows(alignment, "b", 0, 3, reader(data)).tolist() == [3.0, 20.0, 20.0]


@given(alignments(), st.sampled_from(MODELS))
def test_the_mean_row_is_that_of_all_rows_that_are_not_filled(alignment, model):
    data = matrices()
    rows = [expected_row(alignment, model, row, data) for row in range(alignment.size)]
    kept = [row for row in rows if row is not None]
    wanted = np.mean(kept, 0) if kept else np.zeros(3)
    np.testing.assert_allclose(mean_row(alignment, model, reader(data), (3,)), wanted, rtol=1e-5, atol=1e-6)


@given(alignments(), st.lists(st.sampled_from(MODELS), min_size=1, unique=True))
def test_among_some_models_the_rule_sees_only_those(alignment, some):
    part = alignment.among(some, None)
    for row in range(alignment.size):
        pairs = part.fallback.pairs(row)
        if row not in alignment.choices:
            assert {model for model, _ in pairs} <= set(some)


# --- the oracle ------------------------------------------------------------------------------------------------------


class Info:
    """What mergekit's embedding task reads of a tokenizer: token i is called ``t{i}``."""

    def __init__(self, alignment: Alignment, count: int) -> None:
        self.tokenizer = self
        names = {f"t{i}": i for i in range(count)}
        self.get_vocab = lambda: names
        self.permutations = {
            reference(m): dict(enumerate(rows[:count].tolist())) for m, rows in alignment.rows_in.items()
        }
        self.original_vocabs = {reference(m): {} for m in alignment.rows_in}


def reference(name: str) -> ModelReference:
    return ModelReference.parse(name)


def their_source(choice) -> dict:
    if choice is None:
        return {"kind": "zero"}
    return {"kind": "model_token", "model": reference(choice[0]), "token_id": choice[1]}


@settings(max_examples=60)
@given(alignments(), st.integers(1, 5))
def test_embeddings_are_those_of_mergekit(alignment, multiple):
    """Same rows for each model, token by token, pads included; where a forced token has no source it raises there."""
    count = int(alignment.named.sum())
    size = -(-count // multiple) * multiple
    rows_in = {m: np.concatenate([rows[:count], np.full(size - count, -1)]) for m, rows in alignment.rows_in.items()}
    forced = np.zeros(size, bool)
    forced[[i for i in alignment.choices if alignment.forced[i]]] = True
    alignment = Alignment(rows_in, forced, np.arange(size) < count, alignment.choices, alignment.base)
    entries = {f"t{i}": {"source": their_source(c), "force": bool(forced[i])} for i, c in alignment.choices.items()}
    their_config = TheirConfig(tokens=entries, pad_to_multiple_of=multiple)
    task = PermutedVocabulary.model_construct(
        tokens=ImmutableMap(data=their_config.tokens),
        pad_to_multiple_of=multiple,
        base_model=reference(alignment.base) if alignment.base else None,
        vocabulary_axis=0,
    )
    data = matrices()
    theirs = task.execute(Info(alignment, count), {reference(m): torch.from_numpy(x) for m, x in data.items()})
    for model in MODELS:
        mean = mean_row(alignment, model, reader(data), (3,))
        ours = gather_rows(alignment, model, 0, size, reader(data), (3,), mean)
        np.testing.assert_allclose(ours, theirs[reference(model)].numpy(), rtol=1e-5, atol=1e-6)
