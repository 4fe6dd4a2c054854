"""A writer behind an OpenAI-compatible address: a server of one's own, or a service."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.extras import needed
from weightops.recipes.floor.checking import plain, relation
from weightops.recipes.floor.settings import Count, NotNegative
from weightops.recipes.writing.asks import AskRefusedError, Rate, Write, Written


@dataclass(frozen=True)
class Endpoint:
    """A model that answers chat completions over HTTP.

    Attributes:
        url: Its address, up to and including ``/v1``.
        model: The model's name there.
        key_variable: Environment variable that holds the key, where one is needed. A key is never written anywhere.
        tokens: Most tokens of an answer.
        temperature: 0 for the most probable token at each place.
        top_p: As for a model of this machine.
        seed: Sent along; not every server heeds it.
        batch: Requests under way at a time.
        retries: Times a request is repeated that was answered 408, 409, 429 or 5xx, or not at all, with growing pauses.
        timeout: Seconds to wait for an answer.
    """

    url: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    key_variable: str = "OPENAI_API_KEY"
    tokens: Count = 1024
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: NotNegative = 0
    batch: Count = 8
    retries: NotNegative = 6
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 120.0

    @relation("url")
    def _is_address(self) -> Iterator[str]:
        if not self.url.startswith(("http://", "https://")):
            yield f"must begin with http:// or https://; found {self.url!r}"

    @contextmanager
    def opened(self, base: str | None) -> Iterator[OpenEndpoint]:
        """A client; it is closed in the end.

        Raises:
            WeightopsError: the package ``openai`` is missing.
        """
        openai = needed("openai", "openai", "endpoint")
        key = os.environ.get(self.key_variable) or "none"
        with openai.OpenAI(base_url=self.url, api_key=key, max_retries=self.retries, timeout=self.timeout) as client:
            yield OpenEndpoint(self, client)


class OpenEndpoint:
    """A client that is ready.

    Attributes:
        identity: See :class:`~weightops.recipes.writing.asks.OpenWriter`.
        batch: The same.
    """

    def __init__(self, settings: Endpoint, client: Any) -> None:
        self.settings, self.client, self.batch = settings, client, settings.batch
        undecisive = ("batch", "retries", "timeout", "key_variable")
        self.identity = str({name: value for name, value in plain(settings).items() if name not in undecisive})

    def write(self, asks: Sequence[Write], keys: Sequence[str]) -> list[tuple[Written, ...] | AskRefusedError]:
        """The answers to some prompts, as many requests at a time as ``batch`` says."""
        requests = [(ask, sample) for ask in asks for sample in range(ask.samples)]
        with ThreadPoolExecutor(self.batch) as pool:
            answers = iter(list(pool.map(lambda request: self._written(*request), requests)))
        written = []
        for ask in asks:
            samples = [next(answers) for _ in range(ask.samples)]
            refused = next((each for each in samples if isinstance(each, AskRefusedError)), None)
            written.append(refused or tuple(each for each in samples if isinstance(each, Written)))
        return written

    def rate(self, asks: Sequence[Rate]) -> list[float | AskRefusedError]:
        """Refused: chat completions do not tell how probable a given answer is.

        Raises:
            WeightopsError: always.
        """
        raise WeightopsError("writer endpoint: cannot tell how probable a given answer is; use a local writer")

    def _written(self, ask: Write, sample: int) -> Written | AskRefusedError:
        from openai import APIError, APIStatusError

        settings = self.settings
        turns = [{"role": "user", "content": ask.prompt}] if isinstance(ask.prompt, str) else list(ask.prompt)
        try:
            reply = self.client.chat.completions.create(
                model=settings.model, messages=turns, max_tokens=settings.tokens, temperature=settings.temperature,
                top_p=settings.top_p, seed=settings.seed + sample,
            )  # fmt: skip
            choice = reply.choices[0]
            return Written((choice.message.content or "").strip(), choice.finish_reason == "stop")
        except APIStatusError as error:
            if error.status_code in (400, 413, 422):  # this request, and no other: a prompt too long, say
                return AskRefusedError(f"the endpoint refused a prompt ({error.status_code})")
            raise self._failure(f"answered {error.status_code}", error.status_code) from error
        except APIError as error:
            raise self._failure(f"did not answer ({error.message.rstrip('.')})") from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise self._failure("answered with something that is not a chat completion", 200) from error

    def _failure(self, what: str, status: int = 500) -> WeightopsError:
        """What went wrong, and what to do; for a status that is not asked for again, without how often."""
        settings = self.settings
        again = status >= 500 or status in (408, 409, 429)
        times = f", {settings.retries + 1} times" if again and settings.retries else ""
        advice = {
            401: f"put the key into the environment variable {settings.key_variable}",
            403: f"check what the key in the environment variable {settings.key_variable} may do",
            404: f"check the address and the model, {settings.model}",
        }.get(status, "fix this")
        return WeightopsError(f"{settings.url}: {what}{times}; {advice}, then rerun to resume")
