"""A sample is drawn by the seed, cut to what the model reads, and says what it left out."""

import pytest
import tiny_models

import weightops as wo
from weightops.errors import WeightopsError
from weightops.layerwise.calibration import calibration_tokens
from weightops.rows.row import Row


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wo.open(tiny_models.transformer(tmp_path_factory.mktemp("calibration") / "m", "llama", tied=True))


def rows(*texts):
    return [Row.of(f"line {number}", {"text": text}) for number, text in enumerate(texts, 1)]


def test_rows_are_cut_to_the_context_and_to_the_tokens_asked_for(model):
    long = rows("hello " * 100)
    assert len(calibration_tokens(model, long).ids[0]) == 64  # its max_position_embeddings
    sample = calibration_tokens(model, long, most_tokens=5)
    assert len(sample.ids[0]) == sample.tokens == 5
    assert "1 of 1 rows are longer than 5 tokens and are cut" in sample.notes[0]


def test_the_seed_draws_the_rows_and_they_keep_their_order(model):
    texts = rows(*["a " * n for n in range(1, 30)])
    one, again, other = (calibration_tokens(model, texts, most_rows=8, seed=seed).ids for seed in (0, 0, 1))
    assert one == again != other
    assert len(one) == 8
    assert list(one) == sorted(one, key=len)


def test_fewer_rows_than_wanted_are_all_used_and_that_is_said(model):
    sample = calibration_tokens(model, rows("hello", "kill a process"))
    assert len(sample.ids) == 2
    assert "2 rows, fewer than the 64 wanted" in sample.notes[-1]


def test_conversations_go_through_the_chat_template(model):
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "python"}]
    sample = calibration_tokens(model, [Row.of("line 1", {"messages": turns})])
    assert sample.ids[0][:3] == (5, 7, 8)  # user : hello


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([], "no rows of data"),
        ([Row.of("line 1", {"label": 1})], "line 1: needs messages, prompt and completion, or text"),
    ],
)
def test_data_that_cannot_be_read_is_an_error(model, data, problem):
    with pytest.raises(WeightopsError, match=problem):
        calibration_tokens(model, data)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_an_error(tmp_path):
    small = wo.open(tiny_models.transformer(tmp_path / "m", "llama", tied=True, vocab=6))
    with pytest.raises(WeightopsError, match="token 11, but its embedding has 6 rows"):
        calibration_tokens(small, rows("python"))
