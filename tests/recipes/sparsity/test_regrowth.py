import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.recipes.sparsity.entry_rules import AGE, MEAN, SQUARE, EntryAdam, EntrySm3
from weightops.recipes.sparsity.gathering import Phase
from weightops.recipes.sparsity.regrowth import Regrowth, exchange, exchanged
from weightops.recipes.sparsity.weight_gradient import Positions, WeightGradient

tensor = torch.tensor
POSITIONS = Positions.of(tensor([0]), 1, 1)


def test_an_exchange_by_hand():
    """Five entries, three to be given up: 2, 8 and 6, by the size of what they learned.

    Of the candidates, 4 is active and stays. 7, 8 and 3 are the best three of the others. 8 is one of those to be given
    up, so it stays as it is, and 3 and 7 take the places of 2 and 6. 11 is not good enough.
    """
    active, learned = tensor([2, 4, 6, 8, 9]), tensor([0.1, -5.0, 0.3, -0.2, 4.0])
    offered, scores = tensor([3, 4, 7, 8, 11]), tensor([5.0, 99.0, 9.0, 7.0, 1.0])
    chosen = exchange(active, learned, offered, scores, 3)
    assert chosen.slots.tolist() == [0, 2]
    assert chosen.picked.tolist() == [0, 2]
    entries = {"learned": learned, AGE: tensor([10, 20, 30, 40, 50], dtype=torch.int32)}
    flat, after = exchanged(active, entries, chosen, offered, {AGE: tensor([5, 6, 7, 8, 9])})
    assert flat.tolist() == [3, 4, 7, 8, 9]
    assert after["learned"].tolist() == pytest.approx([0, -5.0, 0, -0.2, 4.0])
    assert after[AGE].tolist() == [5, 20, 7, 40, 50]  # seeded where new, kept where dropped and grown


def test_where_few_candidates_are_offered_the_largest_of_those_to_be_given_up_stay():
    active, learned = tensor([2, 4, 6, 8]), tensor([0.3, 0.2, 0.1, 4.0])
    chosen = exchange(active, learned, tensor([1, 5]), tensor([2.0, 0.0]), 3)  # a score of 0 tells nothing
    assert chosen.slots.tolist() == [2]
    flat, _ = exchanged(active, {"learned": learned}, chosen, tensor([1, 5]), {})
    assert flat.tolist() == [1, 2, 4, 8]


entries = st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.5, 1.0, 2.0])), unique_by=lambda each: each[0])


@given(entries, entries, st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_an_exchange_keeps_the_largest_and_takes_the_best_of_what_is_offered(trained, offers, count):
    trained, offers, count = sorted(trained), sorted(offers), min(count, len(trained))
    active, learned = (list(column) for column in zip(*trained, strict=True)) if trained else ([], [])
    offered, scores = (list(column) for column in zip(*offers, strict=True)) if offers else ([], [])
    given_up = [active[i] for i in sorted(range(len(active)), key=lambda i: learned[i])[:count]]
    stays = set(active) - set(given_up)
    best = sorted((-score, place) for place, score in offers if place not in stays and score > 0)[:count]
    taken = sorted(place for _, place in best)
    leaves = [place for place in given_up if place not in taken]
    comes = [place for place in taken if place not in given_up]
    chosen = exchange(
        torch.tensor(active, dtype=torch.int32), torch.tensor(learned), torch.tensor(offered, dtype=torch.int64),
        torch.tensor(scores), count,
    )  # fmt: skip
    assert [active[slot] for slot in chosen.slots.tolist()] == leaves[: len(comes)]
    assert [offered[pick] for pick in chosen.picked.tolist()] == comes


def test_seeds_are_what_adam_would_hold_after_these_gradients():
    """After n equal gradients, moments and age are those of Adam; the next step is Adam's."""
    rule, gradient = EntryAdam(), tensor([0.5, -2.0])
    learned, state = torch.zeros(2), None
    state = rule.state(learned, 1, 2)
    for _ in range(5):
        rule.step(learned, gradient, state, POSITIONS, 0.0)
    seeds = rule.seeds(gradient, gradient**2, tensor(5))
    for name in (AGE, MEAN, SQUARE):
        torch.testing.assert_close(seeds[name].to(state[name].dtype), state[name])
    seeded = {name: values.clone() for name, values in seeds.items()}
    one, two = torch.zeros(2), torch.zeros(2)
    rule.step(one, gradient, state, POSITIONS, 0.1)
    rule.step(two, gradient, seeded, POSITIONS, 0.1)
    torch.testing.assert_close(one, two)
    assert one.tolist() == pytest.approx([-0.1, 0.1], rel=1e-4)
    short = EntryAdam(ageless=True).seeds(gradient, gradient**2, tensor(5))
    assert short[AGE].tolist() == [4, 4]  # the published code: one short


def test_adam_is_torchs_and_decay_pulls_toward_the_base():
    torch.manual_seed(0)
    theirs = torch.zeros(7, requires_grad=True)
    optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0)
    learned, rule = torch.zeros(7), EntryAdam()
    state = rule.state(learned, 1, 7)
    for _ in range(30):
        theirs.grad = torch.randn(7)
        rule.step(learned, theirs.grad, state, POSITIONS, 0.01)
        optimizer.step()
    torch.testing.assert_close(learned, theirs.detach(), atol=1e-6, rtol=1e-5)
    for rule in (EntryAdam(weight_decay=0.5), EntrySm3(weight_decay=0.5)):
        learned = tensor([1.0, -2.0])
        rule.step(learned, torch.zeros(2), rule.state(learned, 1, 2), Positions.of(tensor([0, 1]), 1, 2), 0.1)
        assert learned.tolist() == pytest.approx([0.95, -1.9])


@pytest.mark.parametrize("compat", [False, True])
def test_ages_advance_with_bf16_moments_and_in_the_published_code_they_do_not(compat):
    rule, learned = EntryAdam(moments=torch.bfloat16, ageless=compat), torch.zeros(3)
    state = rule.state(learned, 1, 3)
    for _ in range(400):
        rule.step(learned, torch.ones(3), state, POSITIONS, 0.0)
    assert state[AGE].tolist() == [0 if compat else 400] * 3


def test_entries_are_exchanged_on_schedule():
    ours = Regrowth(20, 5, 0.2, "linear", steps=100)
    assert [step for step in range(1, 101) if ours.exchanges(step)] == [25, 45, 65, 85]
    assert [step for step in range(1, 51) if ours.gathers(step)] == [*range(21, 26), *range(41, 46)]
    assert [step for step in range(1, 101) if ours.first_gathering(step)] == [21, 41, 61, 81]
    assert [ours.share_at(step) for step in (25, 45)] == pytest.approx([0.15, 0.11])
    assert Regrowth(20, 5, 0.2, "cosine", 100).share_at(50) == pytest.approx(0.1)


def test_the_published_code_throws_away_its_first_steps_and_gathers_one_step_longer():
    theirs = Regrowth(20, 5, 0.2, "linear", steps=100, compat=True)
    assert [step for step in range(1, 101) if theirs.exchanges(step)] == [5, 25, 45, 65, 85]
    assert [step for step in range(1, 51) if theirs.gathers(step)] == [*range(1, 6), *range(20, 26), *range(40, 46)]
    assert [step for step in range(1, 51) if theirs.first_gathering(step)] == [1, 20, 40]
    assert theirs.share_at(5) == 1.0


def gathered(parts, compat):
    """A phase of two steps of ``parts`` micro-batches each, which share the same data."""
    torch.manual_seed(0)
    phase = Phase(6, compat=compat)
    for _ in range(2):
        outputs, inputs = torch.randn(8, 4), torch.randn(8, 5)
        for part in range(parts):
            rows = slice(part * 8 // parts, (part + 1) * 8 // parts)
            phase.candidates = phase.candidates or Positions.of(tensor([0, 3, 8, 9, 11, 19]), 4, 5)
            if not len(phase.gradients):
                phase.gradients, phase.squares, phase.within = torch.zeros(6), torch.zeros(6), torch.zeros(6)
            phase(WeightGradient(outputs[rows], inputs[rows]))
        phase.end_step(phase.within)
    return phase.gradients / phase.samples, phase.squares / phase.samples


def test_seeds_do_not_depend_on_micro_batches_and_in_the_published_code_they_do():
    one, two = gathered(1, False), gathered(4, False)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)
    theirs = gathered(4, True)
    torch.testing.assert_close(theirs[0], one[0] / 4)
    assert not torch.allclose(theirs[1], one[1], rtol=0.5)
