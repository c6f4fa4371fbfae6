"""Rejection sampling and reward-weighted regression: what they train on, how much, and naive oracles of both."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.algorithms.rft import rft, rwr
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


def identity(x):
    return x


def rewarded(rewards):
    """Two groups of four and three; the rewards of their trajectories. Trajectories 0 and 4 have two rows."""
    batch = example_batch((4, 3))
    column = torch.zeros_like(batch.rewards)
    first = [next(i for i in range(len(batch.traj_ids)) if batch.traj_ids[i] == m) for m in range(7)]
    column[first, 3] = torch.tensor(rewards)
    return replace(batch, rewards=column)


RIGHT = [1.0, 0.0, 1.0, 1.5, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("options", [{}, {"most": 1}, {"aggregation": "sequence"}], ids=str)
def test_rft_keeps_the_laws(options):
    check_algorithm(rft(threshold=0.25, **options), baseline=False)


@pytest.mark.parametrize("options", [{}, {"center": "mean", "temperature": 0.3}, {"aggregation": "sequence"}], ids=str)
def test_rwr_keeps_the_laws(options):
    check_algorithm(rwr(**options), baseline=False)


@pytest.mark.parametrize(
    ("most", "threshold", "chosen"),
    [(None, 1.0, [0, 2, 3, 6]), (2, 1.0, [0, 2, 6]), (1, 1.0, [0, 6]), (1, 0.5, [0, 5]), (9, 2.0, [])],
)
def test_right_answers_alone_are_trained_on(most, threshold, chosen):
    given = rewarded(RIGHT)
    batch = rft(threshold, most).advantages(given, identity)
    want = given.loss_mask & torch.isin(given.traj_ids, torch.tensor(chosen, dtype=torch.int64))[:, None]
    assert torch.equal(batch.loss_mask, want) and torch.equal(batch.ce_weights, want.float())


def test_rft_is_the_cross_entropy_of_the_right_answers():
    given = rewarded(RIGHT)
    batch = rft().advantages(given, identity)
    logprobs = given.old_logprobs.clone().requires_grad_()
    weights = loss_weights(batch.loss_mask, batch.traj_ids, "token", identity)
    total = weighted_sum(rft().loss(logprobs, batch)[0], weights)
    right = given.loss_mask & torch.isin(given.traj_ids, torch.tensor([0, 2, 3, 6]))[:, None]
    torch.testing.assert_close(total, -given.old_logprobs[right].mean())
    total.backward()
    assert not logprobs.grad[~right].any() and logprobs.grad[right].all()


def answers(batch):
    """(group, total reward, trained tokens) of each trajectory by number, with loops over its rows."""
    found = []
    for m in sorted(set(batch.traj_ids.tolist())):
        rows = [b for b in range(len(batch.traj_ids)) if batch.traj_ids[b] == m]
        total = sum(float(batch.rewards[b, t]) for b in rows for t in range(batch.rewards.shape[1]))
        tokens = [(b, t) for b in rows for t in range(batch.rewards.shape[1]) if batch.loss_mask[b, t]]
        found.append((int(batch.group_ids[rows[0]]), total, tokens))
    return found


def naive_rft(batch, logprobs, threshold, most, aggregation):
    taken, losses = {}, []
    for group, total, tokens in answers(batch):
        if total >= threshold and taken.get(group, 0) < (most or math.inf):
            taken[group] = taken.get(group, 0) + 1
            losses.append([-float(logprobs[p]) for p in tokens])
    return mean(losses, aggregation)


def naive_rwr(batch, logprobs, temperature, center, aggregation):
    found, losses = answers(batch), []
    for group, total, tokens in found:
        of_group = [other for g, other, _ in found if g == group]
        middle = max(of_group) if center == "max" else statistics.fmean(of_group)
        losses.append([-math.exp((total - middle) / temperature) * float(logprobs[p]) for p in tokens])
    return mean(losses, aggregation)


def mean(losses, aggregation):
    """Over all tokens, or over trajectories of their own means."""
    return statistics.fmean(sum(losses, []) if aggregation == "token" else map(statistics.fmean, losses))


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize(
    ("make", "naive", "options"),
    [
        (rft, naive_rft, {"threshold": 0.25, "most": None}),
        (rft, naive_rft, {"threshold": 0.25, "most": 1}),
        (rwr, naive_rwr, {"temperature": 0.5, "center": "max"}),
        (rwr, naive_rwr, {"temperature": 0.5, "center": "mean"}),
    ],
)
def test_a_step_agrees_with_naive_loops_where_a_trajectory_has_two_rows(make, naive, options, aggregation):
    given = example_batch((4, 3, 5), seed=2)
    assert len(given.traj_ids) == 12 + 3  # the first of each group has two
    algorithm, options = make(**options, aggregation=aggregation), {**options, "aggregation": aggregation}
    batch = algorithm.advantages(given, identity)
    weights = loss_weights(batch.loss_mask, batch.traj_ids, algorithm.aggregation, identity)
    total = weighted_sum(algorithm.loss(given.old_logprobs, batch)[0], weights)
    assert total.item() == pytest.approx(naive(given, given.old_logprobs, **options), abs=1e-5)
    as_rows = replace(given, traj_ids=torch.arange(15))  # the control: a row is no trajectory
    assert abs(total.item() - naive(as_rows, given.old_logprobs, **options)) > 1e-3


def test_a_step_without_a_right_answer_has_no_gradient():
    given = rewarded([0.0] * 7)
    batch = rft().advantages(given, identity)
    logprobs = given.old_logprobs.clone().requires_grad_()
    total = weighted_sum(rft().loss(logprobs, batch)[0], loss_weights(batch.loss_mask, batch.traj_ids, "token", identity))
    total.backward()
    assert total.item() == 0 and not logprobs.grad.any()


@pytest.mark.parametrize(
    ("center", "weights"),  # temperature 0.5; the groups' maxima are 1.5 and 1, their means 0.875 and 0.5
    [
        ("max", [math.exp(-1), math.exp(-3), math.exp(-1), 1, math.exp(-2), math.exp(-1), 1]),
        ("mean", [math.exp(0.25), math.exp(-1.75), math.exp(0.25), math.exp(1.25), math.exp(-1), 1, math.exp(1)]),
    ],
)
def test_weights_of_the_regression_are_as_worked_by_hand(center, weights):
    given = rewarded(RIGHT)
    algorithm = rwr(0.5, center)
    batch = algorithm.advantages(given, identity)
    want = torch.where(given.loss_mask, torch.tensor(weights)[given.traj_ids][:, None], 0.0)
    torch.testing.assert_close(batch.ce_weights, want)
    torch.testing.assert_close(algorithm.loss(given.old_logprobs, batch)[0], -want * given.old_logprobs)
    assert torch.equal(batch.loss_mask, given.loss_mask)


@pytest.mark.parametrize("center", ["max", "mean"])
def test_a_constant_added_to_a_groups_rewards_changes_no_weight(center):
    plain = rwr(0.5, center).advantages(rewarded(RIGHT), identity).ce_weights
    raised = rwr(0.5, center).advantages(rewarded([r + 8 for r in RIGHT]), identity).ce_weights
    torch.testing.assert_close(plain, raised)
    assert len(plain.unique()) > 3


def test_equal_rewards_have_weight_one_and_small_temperatures_leave_the_best():
    equal = rwr(0.1).advantages(rewarded([0.1] * 7), identity)
    assert torch.equal(equal.ce_weights, equal.loss_mask.float())
    cold = rwr(1e-3).advantages(rewarded(RIGHT), identity)
    best = torch.isin(cold.traj_ids, torch.tensor([3, 6]))[:, None]
    assert torch.equal(cold.ce_weights, (cold.loss_mask & best).float())


def test_neither_needs_a_forward_pass():
    assert rft().needs == rwr().needs == frozenset() and (rft().name, rwr().name) == ("rft", "rwr")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rft("all"), "algorithm.threshold: expected a number, got 'all'"),
        (lambda: rft(most=0), "algorithm.most: expected a whole number, at least 1, got 0"),
        (lambda: rft(most=1.5), "algorithm.most: expected a whole number, at least 1, got 1.5"),
        (lambda: rft(aggregation="constant"), "algorithm.aggregation: expected one of token, sequence, got 'constant'"),
        (lambda: rwr(0), "algorithm.temperature: expected more than 0, got 0"),
        (lambda: rwr(center="min"), "algorithm.center: expected one of max, mean, got 'min'"),
    ],
)
def test_wrong_options_are_errors(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
