"""RISE: a table, a naive oracle, and the laws."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.rise import rise
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


@pytest.mark.parametrize("options", [{}, {"temperature": 0.2}, {"kl_coef": 0.1}, {"overlong": "filter", "is_cap": 2.0}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(rise(**options), baseline=False)


def rewarded(sizes, rewards):
    """Two turns a row: turn 0 up to token 5, turn 1 after; `rewards` for each row."""
    batch = example_batch(sizes)
    mask, t = torch.zeros_like(batch.loss_mask), torch.arange(12)
    mask[:, 3:9] = True
    earned = torch.zeros_like(batch.rewards)
    earned[:, [5, 8]] = torch.tensor(rewards)
    turn_ids = torch.where(mask, (t > 5).long(), -1)
    return replace(batch, loss_mask=mask, turn_ids=turn_ids, rewards=earned)


def test_weights_as_worked_by_hand():
    batch = rewarded((2, 2), [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 1.0]])
    weights = rise(temperature=0.5).advantages(batch, lambda x: x).ce_weights
    # Turn by turn: the means are 0.5, 0.5 in the first group, and 0.5, 0.75 in the second; exp(0.5 / 0.5), exp(0.25 / 0.5).
    for row, (first, second) in enumerate([(math.e, 0.0), (0.0, math.e), (0.0, 0.0), (0.0, math.e**0.5)]):
        assert weights[row].tolist() == pytest.approx([0.0] * 3 + [first] * 3 + [second] * 3 + [0.0] * 3)


def test_the_loss_agrees_with_a_naive_oracle():
    batch = example_batch((4, 3, 1, 5), seed=8)
    algorithm = rise(temperature=0.3, max_weight=5.0)
    logprobs = batch.old_logprobs
    loss, metrics = algorithm.loss(logprobs, algorithm.advantages(batch, lambda x: x))
    earned = {}
    for b, m in enumerate(batch.traj_ids.tolist()):
        for k in {0, 1} & set(batch.turn_ids[b].tolist()):
            last = max(t for t in range(12) if batch.turn_ids[b, t] == k)
            earned[int(batch.group_ids[b]), k, m] = float(batch.rewards[b, last])
    for b, t in batch.loss_mask.nonzero().tolist():
        group, k, m = int(batch.group_ids[b]), int(batch.turn_ids[b, t]), int(batch.traj_ids[b])
        better = earned[group, k, m] - statistics.fmean(r for (g, j, _), r in earned.items() if (g, j) == (group, k))
        weight = min(math.exp(better / 0.3), 5.0) if better > 1e-6 else 0.0
        assert float(loss[b, t]) == pytest.approx(-weight * float(logprobs[b, t]), abs=1e-4)
        assert float(metrics["rise/weight"][b, t]) == pytest.approx(weight, abs=1e-4)
        assert bool(metrics["rise/better"][b, t]) == (weight > 0)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1000.1])
def test_equal_turns_and_lone_members_are_not_imitated(reward):
    equal = rewarded((2, 1), [[reward, 0.5]] * 3)
    assert not rise().advantages(equal, lambda x: x).ce_weights.any()
    lone = rewarded((2, 1), [[reward, 0.5], [reward + 1, 0.5], [reward + 5, 9.0]])
    weights = rise().advantages(lone, lambda x: x).ce_weights
    assert weights[1, 3] > 1 and not weights[2].any()


def test_a_constant_added_to_a_turn_changes_nothing_and_the_other_turns_hold_their_own():
    plain = rewarded((2,), [[1.0, 0.0], [0.0, 0.0]])
    moved = rewarded((2,), [[9.0, 0.0], [8.0, 0.0]])
    weights = rise().advantages(plain, lambda x: x).ce_weights
    assert torch.equal(rise().advantages(moved, lambda x: x).ce_weights, weights)
    assert weights[0, 3] > 1 and not weights[:, 6:].any()


def test_a_weight_is_bounded():
    batch = rewarded((2,), [[1.0, 0.0], [0.0, 0.0]])
    weights = rise(temperature=1e-3, max_weight=7.0).advantages(batch, lambda x: x).ce_weights
    assert weights.unique().tolist() == [0.0, 7.0]


def test_the_gradient_is_minus_the_weight():
    batch = rise().advantages(example_batch(), lambda x: x)
    logprobs = torch.full_like(batch.rewards, -3.0, requires_grad=True)
    rise().loss(logprobs, batch)[0].sum().backward()
    assert torch.equal(logprobs.grad, -batch.ce_weights) and batch.ce_weights.any()


def test_it_needs_rewards_of_turns():
    assert rise().needs == {"turn_rewards"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "algorithm.temperature: expected more than 0, got 0.0"),
        ({"max_weight": 0.5}, "algorithm.max_weight: expected at least 1, got 0.5"),
    ],
)
def test_an_option_that_is_wrong_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        rise(**options)
    assert str(error.value) == message
