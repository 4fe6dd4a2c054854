"""A writer that runs here, through transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from blake3 import blake3
from pydantic import Field

from weightops.anatomy.config_keys import max_positions
from weightops.errors import WeightopsError
from weightops.io.quiet import quiet_transformers
from weightops.recipes.floor.checking import plain
from weightops.recipes.floor.settings import Count, ModelName, NotNegative
from weightops.recipes.writing.asks import AskRefusedError, Rate, Write, Written
from weightops.rows.chat import completion_tokens
from weightops.rows.padding import left_padded, pad_id, right_padded
from weightops.sorted.prompts import prompt_tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Local:
    """A model of this machine. What it writes is decided by its weights, these settings, the seed and the prompt.

    A drawn answer has random numbers of its own, so it does not depend on what else is in its batch, up to rounding.

    Attributes:
        model: The model; by default the one that the recipe trains.
        tokens: Most tokens of an answer. A longer one is cut off and counts as unfinished.
        temperature: 0 takes the most probable token; above, tokens are drawn.
        top_p: Draw from the smallest set of most probable tokens that holds this share of the probability.
        seed: Seed of the draws.
        batch: Prompts written at a time.
        dtype: Dtype of the weights in memory.
    """

    model: ModelName | None = None
    tokens: Count = 256
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: NotNegative = 0
    batch: Count = 16
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"

    @contextmanager
    def opened(self, base: str | None) -> Iterator[OpenLocal]:
        """Load the model, and free it in the end.

        Raises:
            WeightopsError: it cannot be loaded, or none is named.
        """
        from weightops.algebra.loading import load

        name = self.model or base
        if name is None:
            raise WeightopsError("writer: name a model")
        with quiet_transformers():  # which warns of a prompt that is too long; it is counted as refused
            model, tokenizer = load(name, self.dtype)
            yield OpenLocal(self, model.eval(), tokenizer)


class OpenLocal:
    """A loaded model that writes.

    Attributes:
        identity: See :class:`~weightops.recipes.writing.asks.OpenWriter`.
        batch: The same.
    """

    def __init__(self, settings: Local, model: Any, tokenizer: Any) -> None:
        self.settings, self.model, self.tokenizer = settings, model, tokenizer
        self.batch = settings.batch
        decisive = {name: value for name, value in plain(settings).items() if name not in ("model", "batch")}
        self.identity = f"{decisive} {_content(model, tokenizer)}"
        self.context = max_positions(model.config.to_dict())

    def write(self, asks: Sequence[Write], keys: Sequence[str]) -> list[tuple[Written, ...] | AskRefusedError]:
        """The answers to some prompts, batch by batch."""
        prompts = [self._prompt(ask) for ask in asks]
        drawn = [
            (number, prompt, f"{key}/{sample}")
            for number, (ask, prompt, key) in enumerate(zip(asks, prompts, keys, strict=True))
            if not isinstance(prompt, AskRefusedError)
            for sample in range(ask.samples)
        ]
        written: list[list[Written]] = [[] for _ in asks]
        for start in range(0, len(drawn), self.batch):
            some = drawn[start : start + self.batch]
            answers = self._written([prompt for _, prompt, _ in some], [seed for *_, seed in some])
            for (number, *_), answer in zip(some, answers, strict=True):
                written[number].append(answer)
        return [
            prompt if isinstance(prompt, AskRefusedError) else tuple(answers)
            for prompt, answers in zip(prompts, written, strict=True)
        ]

    def rate(self, asks: Sequence[Rate]) -> list[float | AskRefusedError]:
        """The mean log-probability of each answer's tokens, in fp32; padding and batch change it by rounding only."""
        import torch

        encoded = [completion_tokens(self.tokenizer, ask.prompt, ask.answer, ask.chat) for ask in asks]
        fitting = [each for each in encoded if self._fits(len(each.ids)) and any(each.trained[1:])]
        refused = AskRefusedError("an answer that is empty, or longer than the context with its prompt")
        if not fitting:
            return [refused for _ in asks]
        batch = right_padded([each.ids for each in fitting], pad_id(self.tokenizer))
        with torch.inference_mode():
            logits = self.model(**{name: tensor.to(self.model.device) for name, tensor in batch.items()}).logits
        means = iter(
            _mean_log_probability(logits[number], each.ids, each.trained) for number, each in enumerate(fitting)
        )
        return [next(means) if each in fitting else refused for each in encoded]

    def _prompt(self, ask: Write) -> list[int] | AskRefusedError:
        ids = prompt_tokens(self.tokenizer, ask.prompt)
        if not ids:
            return AskRefusedError("an empty prompt")
        if not self._fits(len(ids) + self.settings.tokens):
            return AskRefusedError(f"a prompt that leaves no room for {self.settings.tokens} tokens in the context")
        return ids

    def _fits(self, length: int) -> bool:
        return self.context is None or length <= self.context

    def _written(self, prompts: Sequence[list[int]], seeds: Sequence[str]) -> list[Written]:
        """One answer to each prompt, in one batch."""
        import torch

        batch = left_padded(prompts, pad_id(self.tokenizer))
        inputs = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        draws = [SeededDraws(self.settings, seeds)] if self.settings.temperature else []
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, max_new_tokens=self.settings.tokens, do_sample=False, logits_processor=draws,
                pad_token_id=pad_id(self.tokenizer), num_beams=1, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        ends = _end_tokens(self.model)
        return [self._text(row.tolist(), ends) for row in out[:, inputs["input_ids"].shape[1] :]]

    def _text(self, ids: list[int], ends: frozenset[int]) -> Written:
        length = next((place for place, token in enumerate(ids) if token in ends), None)
        return Written(self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip(), length is not None)


class SeededDraws:
    """A processor of logits after which the most probable token is a drawn one: Gumbel noise from each row's own seed.

    Args:
        settings: With the temperature and ``top_p``.
        seeds: One for each row of the batch.
    """

    def __init__(self, settings: Local, seeds: Sequence[str]) -> None:
        import torch

        from weightops.sorted.sampling import Sampling

        self.sampling = Sampling(settings.temperature, top_p=settings.top_p)
        texts = [f"{settings.seed}/{seed}".encode() for seed in seeds]
        numbers = [int.from_bytes(blake3(text).digest(8), "little", signed=False) >> 1 for text in texts]
        self.generators = [torch.Generator().manual_seed(number) for number in numbers]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The noisy log-probabilities, [rows, vocabulary]."""
        import torch

        uniform = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in self.generators])
        noise = -(-uniform.clamp(min=torch.finfo(torch.float32).tiny).log()).log()
        return self.sampling.probabilities(scores).log() + noise.to(scores.device)


def _mean_log_probability(logits: Tensor, ids: Sequence[int], trained: Sequence[bool]) -> float:
    """Of the trained tokens; logits [tokens or more, vocabulary] predict the token after theirs."""
    import torch

    places = torch.tensor([place for place in range(1, len(ids)) if trained[place]])
    tokens = torch.tensor(ids)[places].to(logits.device)
    return -float(torch.nn.functional.cross_entropy(logits[places - 1].float(), tokens))


def _end_tokens(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _content(model: Any, tokenizer: Any) -> str:
    """A digest of a loaded model: its weights, its tokenizer and its chat template."""
    import torch

    digest = blake3()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()
