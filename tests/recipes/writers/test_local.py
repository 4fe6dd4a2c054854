"""The writer of this machine: equal to transformers, and indifferent to batches."""

from __future__ import annotations

import pytest
import torch
from tiny_chat import write_chat_model

from weightops.errors import WeightopsError
from weightops.recipes.writers.local import Local
from weightops.recipes.writing.asks import AskRefusedError, Rate, Write
from weightops.rows.chat import completion_tokens
from weightops.sorted.prompts import prompt_tokens

PROMPTS = ["is this safe", "unsafe?", "is it or is it not safe or unsafe", "a"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_chat_model(tmp_path_factory.mktemp("writer") / "model"))


def answers(model, prompts=PROMPTS, samples=1, **settings):
    writer = Local(model, dtype="float32", tokens=12, **settings)
    with writer.opened(None) as opened:
        asks = [Write(writer, prompt, samples) for prompt in prompts]
        return dict(zip(prompts, opened.write(asks, prompts), strict=True))


def test_greedy_answers_are_those_of_transformers_one_by_one(model):
    written = answers(model)
    with Local(model, dtype="float32").opened(None) as opened:
        for prompt, (answer,) in written.items():
            ids = torch.tensor([prompt_tokens(opened.tokenizer, prompt)])
            out = opened.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
            assert answer.text == opened.tokenizer.decode(out, skip_special_tokens=True).strip()
            assert answer.whole == (opened.tokenizer.eos_token_id in out.tolist())


@pytest.mark.parametrize("batch", [1, 3])
def test_drawn_answers_depend_on_seed_and_prompt_and_not_on_the_batch(model, batch):
    drawn = answers(model, temperature=1.0, samples=2)
    assert answers(model, PROMPTS[::-1], temperature=1.0, samples=2, batch=batch) == drawn
    assert answers(model, temperature=1.0, samples=2, seed=1) != drawn
    assert len({each.text for reply in drawn.values() for each in reply}) > len(PROMPTS)


def test_draws_follow_the_distribution(model):
    """Two tokens of known chances, 4000 rows: the share of the first is within four standard deviations."""
    from weightops.recipes.writers.local import SeededDraws

    draws = SeededDraws(Local(temperature=1.0), [str(n) for n in range(4000)])
    scores = torch.full((4000, 5), -torch.inf)
    scores[:, 1], scores[:, 3] = torch.log(torch.tensor([0.3, 0.7]))
    chosen = draws(torch.zeros(4000, 0), scores).argmax(-1)
    assert set(chosen.tolist()) == {1, 3}
    assert abs((chosen == 1).float().mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_a_rate_is_minus_the_loss_of_the_row_alone_in_any_batch(model):
    writer = Local(model, dtype="float32")
    pairs = [("is this safe", "safe"), ("or unsafe", "unsafe or safe or not"), ("?", "safe")]
    with writer.opened(None) as opened:
        asks = [Rate(writer, prompt, answer, chat) for prompt, answer in pairs for chat in (True, False)]
        together = opened.rate(asks)
        for ask, rate in zip(asks, together, strict=True):
            assert opened.rate([ask]) == [pytest.approx(rate, abs=1e-5)]
            tokens = completion_tokens(opened.tokenizer, ask.prompt, ask.answer, ask.chat)
            ids = torch.tensor([tokens.ids])
            labels = torch.where(torch.tensor([tokens.trained]), ids, -100)
            assert rate == pytest.approx(-opened.model(input_ids=ids, labels=labels).loss.item(), abs=1e-5)


def test_a_prompt_without_room_for_an_answer_is_refused_alone(model):
    written = answers(model, ["safe", "safe " * 400])
    assert not isinstance(written["safe"], AskRefusedError)
    assert "no room" in str(written["safe " * 400])


def test_an_identity_is_the_models_content_and_not_its_name(model, tmp_path):
    def identity(folder, **settings):
        with Local(str(folder), **settings).opened(None) as opened:
            return opened.identity

    copy = write_chat_model(tmp_path / "copy")
    assert identity(copy) == identity(model, batch=3)
    assert identity(copy) != identity(copy, temperature=0.5)


def test_without_any_model_the_error_says_so():
    with pytest.raises(WeightopsError, match="name a model"), Local().opened(None):
        pass
