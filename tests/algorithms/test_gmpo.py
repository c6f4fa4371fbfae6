"""GMPO: a naive oracle of the whole step, the laws, and single tokens that weigh little."""

import math
import statistics

import pytest
import torch

from rlft.algorithms.gmpo import gmpo
from rlft.algorithms.grpo import grpo
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


def identity(x):
    return x


def step(algorithm, given, logprobs):
    batch = algorithm.advantages(given, identity)
    weights = loss_weights(batch.loss_mask, batch.traj_ids, algorithm.aggregation, identity, algorithm.max_length)
    return weighted_sum(algorithm.loss(logprobs, batch)[0], weights)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_low": 0.1, "clip_high": 0.2, "aggregation": "token"},
        {"normalize": False, "kl_coef": 0.1, "is_cap": 2.0, "overlong": "filter"},
    ],
    ids=str,
)
def test_it_keeps_the_laws(options):
    check_algorithm(gmpo(**options))


def test_a_step_agrees_with_a_naive_oracle():
    batch = example_batch((4, 3), seed=2)
    g = torch.Generator().manual_seed(5)
    logprobs = torch.where(batch.loss_mask, batch.old_logprobs + 0.4 * torch.randn(batch.rewards.shape, generator=g), 0.0)
    logs, total = {}, {}
    for m in range(7):
        rows = [i for i in range(len(batch.traj_ids)) if batch.traj_ids[i] == m]
        logs[m] = [float(logprobs[i, t] - batch.old_logprobs[i, t]) for i in rows for t in range(12) if batch.loss_mask[i, t]]
        total[m] = sum(float(batch.rewards[i].sum()) for i in rows)
    want = 0.0
    for members in (range(4), range(4, 7)):
        group = [total[m] for m in members]
        for m in members:
            a = (total[m] - statistics.fmean(group)) / (statistics.pstdev(group) + 1e-6)
            kept = [min(x, 0.3) if a > 0 else max(x, -0.2) for x in logs[m]]
            want -= a * math.exp(statistics.fmean(kept)) / 7
    assert float(step(gmpo(0.2, 0.3), batch, logprobs)) == pytest.approx(want, abs=2e-5)


def test_at_ratio_one_the_gradient_is_reinforces():
    given = example_batch()
    logprobs = given.old_logprobs.clone().requires_grad_()
    step(gmpo(), given, logprobs).backward()
    batch = gmpo().advantages(given, identity)
    torch.testing.assert_close(logprobs.grad, -batch.advantages * loss_weights(batch.loss_mask, batch.traj_ids, "sequence", identity))
    assert logprobs.grad.any()


def test_one_token_far_away_moves_the_loss_less_than_grpos():
    given = example_batch()
    batch = gmpo().advantages(given, identity)
    bad = batch.advantages.sum(-1).argmin()  # nothing bounds a bad token that became likely
    far = given.old_logprobs.clone()
    far[bad, batch.loss_mask[bad].nonzero()[0]] += 3.0
    wide = {"aggregation": "sequence"}
    change = {a.name: abs(float(step(a, given, far) - step(a, given, given.old_logprobs))) for a in (gmpo(), grpo(**wide))}
    assert 0 < change["gmpo"] < change["grpo"] / 3


def test_it_needs_whole_trajectories_that_count_the_same():
    assert gmpo().unit == "trajectory" and gmpo().aggregation == "sequence"


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_grpos_scaled_or_not(normalize):
    given = example_batch()
    mine, same, other = (
        a.advantages(given, identity).advantages
        for a in (gmpo(normalize=normalize), grpo(normalize=normalize), grpo(normalize=not normalize))
    )
    assert torch.equal(mine, same) and not torch.equal(mine, other)


@pytest.mark.parametrize("option", ["clip_low", "clip_high"])
def test_bounds_below_zero_are_errors(option):
    with pytest.raises(ConfigError, match=f"algorithm.{option}: expected at least 0, got -0.1"):
        gmpo(**{option: -0.1})
