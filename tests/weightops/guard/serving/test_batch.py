"""The thread that asks the guard for everyone: who waits, who is refused, and what is kept."""

import asyncio

import pytest

from weightops.errors import WeightopsError
from weightops.guard.serving.batch import Batcher, BusyError, Session


@pytest.fixture
def batcher(guard):
    batcher = Batcher(guard, batch=4, most_waiting=3)
    yield batcher
    batcher.stop()


def test_more_than_may_wait_is_refused_and_the_rest_is_judged(batcher, guard):
    async def run():
        jobs = [batcher.judge(Session(), text, last=True) for text in ("a", "b", "c", "d")]
        return await asyncio.gather(*jobs, return_exceptions=True)

    *judged, refused = asyncio.run(run())
    assert isinstance(refused, BusyError)
    assert [v.probability for v in judged] == pytest.approx(list(guard.probabilities(["a", "b", "c"])), abs=1e-5)
    assert batcher.waiting == 0


def test_a_client_that_left_is_not_waited_for(batcher, guard):
    async def run():
        left = asyncio.ensure_future(batcher.judge(Session(), "a"))
        await asyncio.sleep(0)
        left.cancel()
        return await batcher.judge(Session(), "b")

    assert asyncio.run(run()).probability == pytest.approx(guard.probabilities(["b"])[0], abs=1e-5)
    assert batcher.waiting == 0


def test_the_thread_outlives_a_pass_that_failed(batcher, guard, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guard.model, "forward", lambda *_, **__: 1 / 0, raising=False)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(batcher.judge(Session(), "a"))
    assert batcher.alive
    assert asyncio.run(batcher.judge(Session(), "a")).probability == pytest.approx(
        guard.probabilities(["a"])[0], abs=1e-5
    )


def test_a_text_too_long_for_the_model_fails_alone(batcher, guard):
    async def run():
        jobs = [batcher.judge(Session(), text) for text in ("a b " * 300, "b")]
        return await asyncio.gather(*jobs, return_exceptions=True)

    long, fine = asyncio.run(run())
    assert isinstance(long, WeightopsError)
    assert fine.probability == pytest.approx(guard.probabilities(["b"])[0], abs=1e-5)


def test_memory_is_bounded_by_letting_go_of_who_comes_next(guard):
    batcher = Batcher(guard, kept_bytes=1)
    first, second = Session(), Session()
    try:
        asyncio.run(batcher.judge(first, "is this"))
        assert batcher.kept == first.stream.kept_bytes > 1
        with pytest.raises(BusyError, match="open texts use"):
            asyncio.run(batcher.judge(second, "a"))
        with pytest.raises(BusyError, match="open texts use"):
            asyncio.run(batcher.judge(first, " safe"))
        assert first.stream is None  # so there is room again
        verdict = asyncio.run(batcher.judge(second, "a", last=True))
        assert verdict.probability == pytest.approx(guard.probabilities(["a"])[0], abs=1e-5)
        assert batcher.kept == 0
    finally:
        batcher.stop()
