"""Discriminative fine-tuning: the answer gains against answers that the untrained model wrote itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.io.progress import followed
from weightops.recipes.data.token_objective import MODEL_INPUTS, TokenObjective
from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import ROW_INDEX, Batch, Row
from weightops.recipes.floor.settings import NotNegative
from weightops.rows.chat import Tokens
from weightops.rows.encode import TokensOf
from weightops.rows.row import Row as DataRow
from weightops.rows.row import short

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("implemented and tested", ("2502.18679",), "recipes/discriminative-fine-tuning.md")

REFERENCE_BATCH = 4
"""Negatives that the untrained model reads at one time."""
ROW, NEGATIVE = "sequence_row", "sequence_negative"
"""Of each sequence in a batch: the place of its row, and its number among the row's negatives, -1 for the answer."""


@dataclass(frozen=True)
class DiscriminativeTuning(TokenObjective):
    """-s(y) + tau log E exp(d) over rows, s(y) being the score of the answer and E a mean over sampled negatives.

    Source: Discriminative Fine-Tuning (DFT and DFT2), arXiv 2502.18679; not the Dynamic Fine-Tuning that TRL calls
    ``dft``. With ``score: sum`` (DFT), s is the log-probability of an answer, and d = s / tau - s', s' being the score
    by the untrained model. With ``mean`` (DFT2), s is the mean over the answer's tokens, and d = s / tau. E is tracked
    by a moving average for each row, u <- (1 - rate) u + rate mean exp(d), from u = 1. The gradient of a negative's
    score weighs exp(d) / u.

    The averages are saved in checkpoints and summed over processes, which the paper's code does not do. Ours, too: the
    negatives of a row take their turns in an order drawn by the seed, and the loss of rows held out is -s(y) alone,
    with ``won``, the share of their negatives that the model finds less probable than the answer.

    Rows have ``prompt``, ``completion`` and ``negatives``: answers to the prompt that the untrained model wrote.

    Attributes:
        score: ``sum`` or ``mean`` of the tokens' log-probabilities: DFT or DFT2.
        temperature: tau. The paper: 1 for DFT, 0.3 for DFT2.
        rate: How much of the moving average is new, gamma. The paper: 0.85 for DFT, 0.9 for DFT2.
        negatives: How many of a row's negatives count in a step. With 0, only the answer does.
        seed: Decides the order of the negatives.
        reference: Log-probabilities of the negatives by the untrained model, [rows, negatives].
        averages: log u of each row, [rows].
        visits: How often each row was learned, [rows].
    """

    score: Literal["sum", "mean"] = "sum"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    rate: Annotated[float, Field(gt=0, le=1)] = 0.85
    negatives: NotNegative = 2
    seed: NotNegative = 0
    reference: Any = field(default=None, metadata=RUNTIME)
    averages: Any = field(default=None, metadata=RUNTIME)
    visits: Any = field(default=None, metadata=RUNTIME)

    reads: ClassVar[tuple[str, ...]] = ("input_ids", "negatives")
    columns: ClassVar[tuple[str, ...]] = ("negatives",)
    packs: ClassVar[bool] = False

    def problems(self, row: DataRow) -> Iterator[str]:
        """Rows without negatives, or in another form."""
        texts = row.columns.get("negatives")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            yield f"negatives: must be a list of texts that are not empty; found {short(texts)}"
        if row.messages is not None or row.prompt is None or row.completion is None:
            yield "the row must hold prompt and completion, not messages or text"

    def fields(self, row: DataRow, tokens: Tokens, tokens_of: TokensOf) -> Mapping[str, Any]:
        """``negatives``: the tokens of the prompt with each of them.

        Raises:
            WeightopsError: one of which nothing is learned.
        """
        made = []
        for number, text in enumerate(row.columns["negatives"], 1):
            negative = tokens_of(replace(row, messages=None, completion=text))
            if not any(negative.trained[1:]):
                raise WeightopsError(f"negatives: nothing of number {number} is left to learn; remove it")
            made.append({"input_ids": list(negative.ids), "trained": list(negative.trained)})
        return {"negatives": made}

    def ready(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Self:
        """With an average for each row, and, for DFT, what the untrained model thinks of the negatives."""
        import torch

        made = super().ready(model, tokenizer, rows)
        reference = made._reference(model, rows) if self.score == "sum" and self.negatives else None
        averages, visits = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64)
        return replace(made, reference=reference, averages=averages, visits=visits)

    def state(self) -> Mapping[str, Tensor]:
        """The moving averages, and whose turn it is among the negatives."""
        return {"averages": self.averages, "visits": self.visits}

    def length(self, row: Row) -> int:
        """Tokens of the answer and of all negatives, each with the prompt."""
        return len(row["input_ids"]) + sum(len(negative["input_ids"]) for negative in row["negatives"])

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """As for all objectives over tokens, one sequence for each answer and each negative; whose each is."""
        import torch

        sequences = [
            (place, number, sequence)
            for place, row in enumerate(rows)
            for number, sequence in enumerate((row, *row["negatives"]), -1)
        ]
        return {
            **super().batch([sequence for *_, sequence in sequences]),
            ROW: torch.tensor([place for place, *_ in sequences]),
            NEGATIVE: torch.tensor([number for _, number, _ in sequences]),
            ROW_INDEX: torch.tensor([row.get(ROW_INDEX, -1) for row in rows]),
        }

    def items(self, batch: Batch) -> float:
        """Rows."""
        return len(batch[ROW_INDEX])

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the rows; while it trains, the averages change."""
        import torch

        if not torch.is_grad_enabled() or not self.negatives:
            return -self._scores(model, _only(batch, batch[NEGATIVE] < 0)).sum()
        indices = batch[ROW_INDEX].cpu()
        turns = self._turns(indices.tolist(), _counts(batch))
        chosen = _only(batch, self._chosen(batch, turns))
        scores = self._scores(model, chosen)
        answers = chosen[NEGATIVE] < 0
        sizes = torch.tensor([[len(turn)] for turn in turns], device=scores.device)
        present = torch.arange(int(sizes.max()), device=scores.device) < sizes
        others, averages = _by_row(scores[~answers], present), self.averages[indices].to(scores.device)
        reference = _by_row(self._reference_of(indices, turns).to(scores.device), present)
        losses, averages = contrast(scores[answers], others, reference, averages, present, self.temperature, self.rate)
        self.averages[indices] = averages.to(self.averages.device)
        self.visits[indices] += 1
        return losses.sum()

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """``won``: share of a row's negatives that score less than its answer, summed over the rows."""
        scores, negative = self._scores(model, batch), batch[NEGATIVE] >= 0
        answers = scores[~negative][batch[ROW]]
        counts = _counts(batch)
        won = ((scores < answers) & negative).tolist()
        return {"won": sum(each / counts[row] for each, row in zip(won, batch[ROW].tolist(), strict=True))}

    def _turns(self, indices: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
        """Which of its negatives count for each row: the next ones of an order that is the row's own."""
        turns = []
        for index, count in zip(indices, counts, strict=True):
            order = random.Random(f"{self.seed}/{index}").sample(range(count), count)
            begin = int(self.visits[index]) * self.negatives
            turns.append([order[(begin + at) % count] for at in range(min(self.negatives, count))])
        return turns

    def _chosen(self, batch: Batch, turns: Sequence[Sequence[int]]) -> Tensor:
        """Which sequences of a batch are answers, or negatives whose turn it is."""
        import torch

        pairs = zip(batch[ROW].tolist(), batch[NEGATIVE].tolist(), strict=True)
        return torch.tensor([number < 0 or number in turns[row] for row, number in pairs], device=batch[ROW].device)

    def _reference_of(self, indices: Tensor, turns: Sequence[Sequence[int]]) -> Tensor:
        """What the untrained model thinks of the negatives whose turn it is, in the order of a batch; 0 for DFT2."""
        import torch

        if self.reference is None:
            return torch.zeros(sum(map(len, turns)))
        return torch.cat([self.reference[row, sorted(turn)] for row, turn in zip(indices, turns, strict=True)])

    def _scores(self, model: Any, batch: Batch) -> Tensor:
        """The score of each sequence, [sequences], fp32."""
        present = batch["targets"] != -100
        sums = _by_row(self.log_probabilities(model, batch), present).sum(1)
        return sums / (present.sum(1) + 1e-8) if self.score == "mean" else sums

    def _reference(self, model: Any, rows: Sequence[Row]) -> Tensor:
        """The scores of all negatives by a model, [rows, most negatives], 0 where a row has fewer."""
        import torch

        from weightops.recipes.floor.model import device_of_process

        home, training, device = next(model.parameters()).device, model.training, device_of_process()
        scores = torch.zeros(len(rows), max(len(row["negatives"]) for row in rows))
        places = [(at, number) for at, row in enumerate(rows) for number in range(len(row["negatives"]))]
        places.sort(key=lambda place: len(rows[place[0]]["negatives"][place[1]]["input_ids"]))
        pieces = [places[first : first + REFERENCE_BATCH] for first in range(0, len(places), REFERENCE_BATCH)]
        model.eval().to(device)
        with torch.no_grad():
            for piece in followed(pieces, "reading the negatives", unit="batch"):
                batch = super().batch([rows[at]["negatives"][number] for at, number in piece])
                of_piece = self._scores(model, {name: tensor.to(device) for name, tensor in batch.items()})
                for (at, number), score in zip(piece, of_piece.tolist(), strict=True):
                    scores[at, number] = score
        model.train(training).to(home)
        return scores


def contrast(
    answers: Tensor,
    others: Tensor,
    reference: Tensor,
    averages: Tensor,
    present: Tensor,
    temperature: float,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """The loss of each row and its new average.

    Args:
        answers: Scores of the answers, [rows], fp32.
        others: Scores of the negatives, [rows, negatives].
        reference: Their scores by the untrained model, or 0, [rows, negatives].
        averages: log u of each row so far, [rows].
        present: Which negatives there are, at least one of each row, [rows, negatives], bool.
        temperature: tau.
        rate: gamma.

    Returns:
        Losses, [rows], in which the negatives' weights have no gradient; and log u, [rows].
    """
    import torch

    exponents = (others.detach() / temperature - reference).masked_fill(~present, -torch.inf)
    counts = present.sum(1)
    new = exponents.logsumexp(1) - counts.log()
    shares = torch.tensor([1 - rate, rate], device=new.device).log()
    averages = torch.logaddexp(shares[0] + averages, shares[1] + new)
    weights = (exponents - averages[:, None]).exp() / counts[:, None]
    return (weights * others).sum(1) - answers, averages


def _by_row(values: Tensor, present: Tensor) -> Tensor:
    """Values, row after row, where ``present`` is true, and 0 elsewhere."""
    import torch

    return torch.zeros(present.shape, device=values.device).masked_scatter(present, values)


def _counts(batch: Batch) -> list[int]:
    """How many negatives each row of a batch has."""
    return [int(((batch[ROW] == row) & (batch[NEGATIVE] >= 0)).sum()) for row in range(len(batch[ROW_INDEX]))]


def _only(batch: Batch, chosen: Tensor) -> dict[str, Tensor]:
    """Some sequences of a batch, without the columns in which they are padding."""
    names = (*MODEL_INPUTS, "targets", ROW, NEGATIVE)
    some = {name: batch[name][chosen] for name in names if name in batch}
    width = int(some["attention_mask"].sum(1).max())
    return {name: tensor[:, :width] if tensor.ndim == 2 else tensor for name, tensor in some.items()}
