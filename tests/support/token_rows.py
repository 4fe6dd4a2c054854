"""What tests of objectives over tokens share: a table of logits as a model, and rows."""

import json
from types import SimpleNamespace

import pytest
import torch

from weightops.errors import WeightopsError
from weightops.recipes.data.source import rows_to_learn
from weightops.recipes.floor.settings import Data

#: Rows of unlike length, of which not all tokens are learned; of the last, none.
ROWS = [
    {"input_ids": [5, 9, 3, 7, 30, 12, 8, 21, 4], "trained": [False] * 3 + [True] * 6},
    {"input_ids": [11, 6, 2, 17], "trained": [False, False, True, True]},
    {"input_ids": [8, 8, 30, 31, 32, 33, 34]},
    {"input_ids": [9, 9, 9], "trained": [True, False, False]},
]


class Tokens:
    """All that an objective reads of a tokenizer."""

    pad_token_id = 0
    eos_token_id = 2


class Table(torch.nn.Module):
    """A model whose logits at a position are a row of a table, the one of the token there."""

    def __init__(self, vocabulary=40, seed=0, dtype=torch.float32):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(vocabulary, vocabulary, generator=draw).to(dtype) * 2)

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.table[input_ids])


def faults_of(records, objective, folder):
    """What an objective finds wrong with the rows of a file, each from its line on."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(WeightopsError) as caught:
        rows_to_learn(Data((str(file),)), objective)
    return [problem.partition("rows.jsonl, ")[2] for problem in caught.value.problems]


def gradient(model, objective, rows):
    """The loss of some rows as one batch, and its gradient with respect to the table."""
    model.table.grad = None
    loss = objective.loss(model, objective.batch(rows))
    loss.backward()
    return loss.detach(), model.table.grad.clone()


def right_logits(model, rows):
    """Logits at each position that predicts a learned token, and those tokens."""
    pairs = [
        (before, token)
        for row in rows
        for before, token, trained in zip(
            row["input_ids"], row["input_ids"][1:], row.get("trained", [True] * 99)[1:], strict=False
        )
        if trained
    ]
    return model.table[[before for before, _ in pairs]], torch.tensor([token for _, token in pairs])
