"""DFT and DFT2: the official functions' numbers, gradients, and what is kept of each row."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import tiny_tokenizer
from token_rows import ROWS, Table, Tokens, faults_of, gradient

from weightops.recipes.floor.objective import ROW_INDEX
from weightops.recipes.floor.trainer import measure
from weightops.recipes.objectives.discriminative_tuning import DiscriminativeTuning, contrast
from weightops.recipes.objectives.next_token import NextToken
from weightops.rows.encode import encode
from weightops.rows.row import Row

CHOSEN = torch.tensor([-10.0, -12.0, -8.0])
REJECTED = torch.tensor([[-14.0, -9.0], [-20.0, -11.0], [-7.0, -30.0]])
REFERENCE = torch.tensor([[-13.0, -10.0], [-18.0, -12.0], [-8.0, -25.0]])
LENGTHS, REJECTED_LENGTHS = torch.tensor([5.0, 6.0, 4.0]), torch.tensor([[7.0, 3.0], [10.0, 4.0], [4.0, 9.0]])
EVERY = torch.ones(3, 2, dtype=torch.bool)

#: What the paper's own functions give on these scores: losses and log u of two calls in a row.
DFT = {
    0.85: (
        ([-0.13084051, 0.03635518, 0.64978971], [0.37954445, 0.30953207, 0.26860124]),
        ([0.32739013, 0.49573724, 0.90063030], [0.42583053, 0.34868688, 0.30332416]),
    ),
    1.0: (
        ([0.40398539, 0.57316714, 0.94312967], [0.43378083, 0.35544017, 0.30932850]),
        ([0.40398539, 0.57316714, 0.94312967], [0.43378083, 0.35544017, 0.30932850]),
    ),
}

#: Rows with negatives of unlike number and length; what is learned of each begins after the prompt.
ANSWERED = [
    {
        **row,
        ROW_INDEX: number,
        "negatives": [{"input_ids": [*row["input_ids"][:3], at, *range(9, 9 + at)]} for at in range(2, 5 + number)],
    }
    for number, row in enumerate(ROWS[:3])
]


def ready(model, rows=ANSWERED, **parameters):
    return DiscriminativeTuning(**parameters).ready(model, Tokens(), rows)


@pytest.mark.parametrize("rate", DFT)
def test_dft_gives_the_numbers_of_the_papers_code(rate):
    averages = torch.zeros(3)
    for losses, expected in DFT[rate]:
        loss, averages = contrast(CHOSEN, REJECTED, REFERENCE, averages, EVERY, 1.0, rate)
        torch.testing.assert_close(loss, torch.tensor(losses), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(averages, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_dft2_gives_the_numbers_and_gradients_of_the_papers_code():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    losses, averages = contrast(
        chosen / LENGTHS, rejected / REJECTED_LENGTHS, torch.zeros(3, 2), torch.zeros(3), EVERY, 0.3, 0.9
    )
    torch.testing.assert_close(losses, torch.tensor([1.98667171, 1.98592452, 1.97446646]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(averages, torch.tensor([-2.29667146, -2.29640727, -2.28942743]), rtol=1e-5, atol=1e-6)
    losses.mean().backward()
    expected = [[3.01221e-4, 2.50735e-5], [2.10799e-4, 4.32587e-5], [1.204176e-3, 2.73148e-6]]
    torch.testing.assert_close(rejected.grad, torch.tensor(expected), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(chosen.grad, -1 / (3 * LENGTHS))


@settings(max_examples=30)
@given(st.sampled_from([0.3, 1.0, 2.0]), st.integers(0, 99))
def test_at_rate_1_the_gradient_is_that_of_the_log_of_the_mean_and_the_weights_sum_to_1(temperature, seed):
    draw = torch.Generator().manual_seed(seed)
    chosen, rejected, reference = (torch.randn(3, size, generator=draw) for size in (1, 4, 4))
    rejected.requires_grad_()
    present = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3])
    losses, _ = contrast(chosen[:, 0], rejected, reference, torch.zeros(3), present, temperature, 1.0)
    (found,) = torch.autograd.grad(losses.sum(), rejected)
    exponents = [(rejected[row] / temperature - reference[row])[present[row]] for row in range(3)]
    direct = sum(temperature * (each.logsumexp(0) - torch.tensor(float(len(each))).log()) for each in exponents)
    (expected,) = torch.autograd.grad(direct, rejected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(3))


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_the_loss_of_a_batch_is_that_of_its_sequences_scored_one_by_one(score):
    model, parameters = Table(), {"score": score, "temperature": 0.7, "rate": 0.6, "negatives": 2}
    objective = ready(model, **parameters)
    before = model.table.detach().clone()
    model.table.data += torch.randn(40, 40, generator=torch.Generator().manual_seed(1)) * 0.3
    turns = objective._turns([0, 1, 2], [3, 4, 5])

    def scored(sequence, table):
        ids = sequence["input_ids"]
        trained = sequence.get("trained", [True] * len(ids))
        terms = [table[a].log_softmax(-1)[b] for a, b, on in zip(ids, ids[1:], trained[1:], strict=False) if on]
        return torch.stack(terms).sum() / (len(terms) if score == "mean" else 1)

    losses = [
        contrast(
            scored(row, model.table)[None],
            torch.stack([scored(row["negatives"][number], model.table) for number in sorted(turn)])[None],
            torch.stack([scored(row["negatives"][number], before) for number in sorted(turn)])[None]
            * (score == "sum"),
            torch.zeros(1), torch.ones(1, 2, dtype=torch.bool), 0.7, 0.6,
        )
        for row, turn in zip(ANSWERED, turns, strict=True)
    ]  # fmt: skip
    expected = torch.cat([loss for loss, _ in losses]).sum()
    (wanted,) = torch.autograd.grad(expected, model.table, retain_graph=True)
    of_batch, moved = gradient(model, objective, ANSWERED)
    torch.testing.assert_close(of_batch, expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        objective.averages, torch.cat([each for _, each in losses]).detach(), rtol=1e-4, atol=1e-4
    )
    other = ready(Table(), **parameters)
    apart = sum(gradient(model, other, [row])[1] for row in reversed(ANSWERED))
    if score == "mean":  # its reference is of no moment
        torch.testing.assert_close(apart, moved, rtol=1e-3, atol=1e-5)


def test_without_negatives_it_is_plain_fine_tuning_on_the_sums_of_rows():
    model, objective = Table(), ready(Table(), negatives=0)
    for one, other in zip(gradient(model, objective, ANSWERED), gradient(model, NextToken(), ROWS[:3]), strict=True):
        torch.testing.assert_close(one, other)
    assert objective.items(objective.batch(ANSWERED)) == 3


def test_all_negatives_of_a_row_have_their_turn_in_an_order_drawn_by_the_seed():
    objective = ready(Table(), negatives=2)
    seen = []
    for _ in range(5):
        seen.append(objective._turns([2], [5])[0])
        objective.visits[2] += 1
    assert all(len(set(turn)) == 2 for turn in seen)
    assert [[*chain(*seen)].count(number) for number in range(5)] == [2] * 5
    assert objective._turns([0], [1]) == [[0]]
    orders = {tuple(ready(Table(), negatives=5, seed=seed)._turns([2], [5])[0]) for seed in range(9)}
    assert len(orders) > 3


def test_rows_held_out_change_no_average_and_show_the_share_of_negatives_that_lose():
    model = Table()
    objective = ready(model)
    held_out = [{name: value for name, value in row.items() if name != ROW_INDEX} for row in ANSWERED]
    measured = measure(model, held_out, objective, 2)
    plain = measure(model, ROWS[:3], NextToken(), 3)["loss"] * NextToken().items(NextToken().batch(ROWS[:3]))
    assert measured["loss"] == pytest.approx(plain / 3, rel=1e-5)
    assert objective.averages.tolist() == [0.0] * 3
    assert objective.visits.tolist() == [0] * 3
    easy = [{**row, "negatives": [row, {"input_ids": row["input_ids"] * 4}]} for row in held_out]
    assert measure(model, easy, objective, 3)["won"] == pytest.approx(0.5)  # a tie is not won


def test_negatives_are_encoded_as_answers_to_the_prompt_and_rows_without_any_are_all_named(tmp_path):
    record = {"prompt": "asked", "completion": "said", "negatives": ["unsafe", "what " * 30]}
    (made,) = encode(tiny_tokenizer(), [Row.of("rows.jsonl, line 1", record)], 60, fields=DiscriminativeTuning().fields,
                     report=lambda note: None)  # fmt: skip
    texts = [tiny_tokenizer().decode(negative["input_ids"]) for negative in made["negatives"]]
    assert texts[0].endswith("assistant\nunsafe<|im_end|>\n")
    assert len(made["negatives"][1]["input_ids"]) == 60
    records = [record, {**record, "negatives": []}, {**record, "negatives": "one"}, {**record, "negatives": []}]
    records += [{**record, "negatives": ["", "a"]}, {"text": "said", "negatives": ["a"]}]
    faults = faults_of(records, DiscriminativeTuning(), tmp_path)
    assert [fault.partition(";")[0] for fault in faults] == [
        "lines 2, 4: negatives: must be a list of texts that are not empty",
        "line 3: negatives: must be a list of texts that are not empty",
        "line 5: negatives: must be a list of texts that are not empty",
        "line 6: the row must hold prompt and completion, not messages or text (objective discriminative_tuning reads it)",
    ]
