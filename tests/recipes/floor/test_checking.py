"""Settings: types and ranges of every kind are checked, all faults are said at once, and none twice over."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from weightops.errors import WeightopsError
from weightops.recipes.floor.checking import check, dotted, plain, read_settings, relation
from weightops.recipes.floor.components import Component, component
from weightops.recipes.floor.familiar import _BY_NAME
from weightops.recipes.floor.objective import Objective
from weightops.recipes.floor.settings import Data, NotNegativeNumber, Training
from weightops.recipes.updates.full import Full
from weightops.recipes.updates.lora import Lora


@dataclass(frozen=True)
class Inner:
    low: Annotated[int, Field(ge=0)] = 0
    high: Annotated[int, Field(ge=0)] = 1

    @relation("high")
    def _ordered(self) -> Iterator[str]:
        if self.high < self.low:
            yield f"must be at least low ({self.low})"


@dataclass(frozen=True)
class Outer:
    number: Annotated[float, Field(gt=0, lt=1)] = 0.5
    limit: NotNegativeNumber = 0.0
    word: Annotated[str, Field(min_length=1)] = "a"
    choice: Literal[1, 2] = 1
    pair: tuple[int, str] = (1, "a")
    either: int | str = 1
    shares: Mapping[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    text: str | None = None
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    objective: Annotated[Objective, Component("objectives")] = field(
        default_factory=lambda: component("objectives", "next_token")()
    )

    @relation("text")
    def _needs_names(self) -> Iterator[str]:
        if self.text is not None and not self.names:
            yield "needs names"
        if self.inner.low > 5:
            yield "needs a smaller inner.low"


def faults(**keys):
    return {dotted(fault.place): fault.problem for fault in read_settings(Outer, keys)[1]}


def value(**keys):
    made, wrong = read_settings(Outer, keys)
    assert wrong == []
    return made


def test_values_become_the_types_of_their_fields():
    made = value(
        number="1e-4", choice=2, pair=[3, "b"], either="x", shares={"a": 1, "b": "1e-3"}, names="one", maybe={"low": 1}
    )
    assert made.number == 1e-4
    assert (made.choice, made.pair, made.either, made.names) == (2, (3, "b"), "x", ("one",))
    assert made.shares == {"a": 1.0, "b": 1e-3}
    assert made.maybe == Inner(1, 1)
    assert type(value(either=3).either) is int


@pytest.mark.parametrize(
    ("keys", "where", "problem"),
    [
        ({"number": 0}, "number", "must be above 0; found 0"),
        ({"number": float("nan")}, "number", "must be below 1; found nan"),
        ({"number": True}, "number", "must be a number; found True"),
        ({"number": "fast"}, "number", "must be a number; found 'fast'"),
        ({"choice": 3}, "choice", "must be one of 1, 2; found 3"),
        ({"choice": "1"}, "choice", "must be one of 1, 2; found '1'"),
        ({"pair": [1, 2]}, "pair[1]", "must be text; found 2"),
        ({"pair": ["a", "b"]}, "pair[0]", "must be a whole number; found 'a'"),
        ({"pair": [1]}, "pair", "has too few items; found [1]"),
        ({"pair": [1, "a", 3]}, "pair", "has too many items; found [1, 'a', 3]"),
        ({"pair": {"a": 1}}, "pair", "must be a list; found {'a': 1}"),
        ({"word": ""}, "word", "must have at least 1 character; found ''"),
        ({"limit": float("inf")}, "limit", "must be a finite number; found inf"),
        ({"either": True}, "either", "must be a whole number or text; found True"),
        ({"shares": {"a": -1}}, "shares.a", "must be at least 0; found -1"),
        ({"shares": [1]}, "shares", "must be keys and values; found [1]"),
        ({"names": [1]}, "names[0]", "must be text; found 1"),
        ({"text": 3}, "text", "must be text; found 3"),
        ({"inner": None}, "inner", "must be keys and values; found None"),
        ({"inner": {"low": -1}}, "inner.low", "must be at least 0; found -1"),
        ({"inner": {"low": 3}}, "inner.high", "must be at least low (3)"),
        ({"objective": {"weight": 1}}, "objective", "needs its name; write it as {kind: NAME, ...}"),
        ({"objective": 3}, "objective", "must be a name or keys and values; found 3"),
        ({"either": 1 << 20000}, "either", "the number is too long"),
    ],
)
def test_a_wrong_value_is_said_in_plain_words(keys, where, problem):
    assert faults(**keys) == {where: f"{where}: {problem}"}


def test_types_ranges_relations_and_unknown_keys_are_said_together():
    messages = faults(number=0, choice="x", pair=[1, 2], inner={"low": 3}, maybe={"high": "x"}, text="t", nmes=1)
    assert set(messages) == {"number", "choice", "pair[1]", "inner.high", "maybe.high", "nmes"}
    assert messages["nmes"] == "unknown key 'nmes' (did you mean 'names'?)"


def test_a_relation_is_left_out_where_a_field_it_reads_is_wrong_and_only_there():
    assert set(faults(inner={"low": 3, "high": "x"})) == {"inner.high"}
    assert set(faults(text="t", number=0)) == {"text", "number"}
    assert set(faults(text="t", names=[1])) == {"names[0]"}
    assert set(faults(inner={"low": 9, "high": 10, "mid": 1})) == {"inner.mid", "text"}
    assert set(faults(inner={"low": 3, "hihg": 5})) == {"inner.hihg"}  # only what it means is left out
    assert set(faults(inner={"low": 3, "other": 5})) == {"inner.other", "inner.high"}


def test_what_is_wrong_with_values_made_in_python_is_said_too():
    wrong = Training(lr=0, batch=3, accumulate=2, update=Lora(rank=0), freeze=("(",), arguments={"bf16": True})
    with pytest.raises(WeightopsError) as error:
        check(wrong)
    places = [problem.partition(":")[0] for problem in error.value.problems]
    assert sorted(places) == ["accumulate", "arguments", "freeze", "lr", "update.rank"]
    check(Training())
    check(Data(("rows.jsonl",)))
    with pytest.raises(WeightopsError, match="set either data.files or data.hub"):
        check(Data())


def test_runtime_fields_are_no_parameters_of_a_recipe():
    assert faults(objective={"kind": "next_token", "pad": 3}) == {"objective.pad": "unknown key 'pad'; available: none"}
    assert value(objective="label_decision").objective.labels == (0, 1)


def test_keys_of_other_tools_are_answered_with_ours_where_there_is_one():
    @dataclass(frozen=True)
    class Recipe:
        training: Training

    def problem(path, key, given=1):
        keys = {"training": {}}
        inner = keys
        for name in path:
            inner = inner.setdefault(name, {})
        inner[key] = given
        return read_settings(Recipe, keys)[1][0].problem

    assert problem((), "learning_rate") == "unknown key 'learning_rate'; here it is training.lr"
    assert problem(("training",), "per_device_train_batch_size").endswith("here it is training.batch")
    assert problem((), "lora_r").endswith("here it is training.update.rank")
    assert problem((), "lora", {"r": 4}) == "unknown key 'lora.r'; here it is training.update.rank"
    assert problem((), "lora", {"oops": 4}) == "unknown key 'lora.oops'; here it is training.update"
    assert "available" in problem((), "max_seq_length")  # this recipe has no such setting


def test_every_place_that_a_familiar_key_leads_to_exists():
    from weightops.recipes.catalog import routines, settings_of
    from weightops.recipes.floor.checking import _has

    places = {here for here in _BY_NAME.values() if not here.startswith("training.update.")}
    assert {here for here in places if not any(_has(settings_of(routine), here) for routine in routines())} == set()
    assert {here.rpartition(".")[2] for here in set(_BY_NAME.values()) - places} == {
        "rank", "alpha", "dropout", "targets",
    }  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["number", "choice", "pair", "either", "shares", "names", "text", "inner", "maybe", "objective"]),
)
def test_whatever_stands_in_a_field_is_a_value_or_a_fault(anything, name):
    made, wrong = read_settings(Outer, {name: anything})
    assert wrong or isinstance(made, Outer)
    assert all(fault.place[0] == name or name in ("inner", "names") for fault in wrong)


def test_plain_settings_are_read_back_as_the_same_value():
    made = Training(update=Lora(4), freeze=("norm",))
    assert plain(made)["update"] == {"kind": "lora", "rank": 4, "alpha": 32.0, "dropout": 0.0, "targets": ()}
    assert read_settings(Training, plain(made)) == (made, [])
    assert read_settings(Training, plain(Training())) == (Training(update=Full()), [])
