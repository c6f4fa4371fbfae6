"""GSPO: a naive oracle of the whole step, the laws, and turns with advantages of their own."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.gspo import gspo
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch

OPTIONS = [
    {},
    {"clip_low": 0.1, "clip_high": 0.2},
    {"clip_low": 0.1, "clip_high": 0.2, "normalize": False, "aggregation": "token"},
    {"clip_low": 0.1, "clip_high": 0.2, "kl_coef": 0.1, "overlong": "filter", "is_cap": 2.0, "is_level": "geometric"},
]


def identity(x):
    return x


def gradient(algorithm, given, logprobs):
    """Loss and gradient of one step."""
    batch, logprobs = algorithm.advantages(given, identity), logprobs.detach().clone().requires_grad_()
    weights = loss_weights(batch.loss_mask, batch.traj_ids, algorithm.aggregation, identity, algorithm.max_length)
    total = weighted_sum(algorithm.loss(logprobs, batch)[0], weights)
    return total.detach(), torch.autograd.grad(total, logprobs)[0]


def moved(batch, by=0.3):
    g = torch.Generator().manual_seed(5)
    return torch.where(batch.loss_mask, batch.old_logprobs + by * torch.randn(batch.token_ids.shape, generator=g), 0.0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(gspo(**options))
    check_algorithm(gspo(level="token", **options), baseline=False)


def test_a_step_agrees_with_a_naive_oracle():
    batch = example_batch((4, 3, 5), seed=2)
    logprobs = moved(batch)
    ratio, total = {}, {}
    for m in range(12):
        rows = [i for i in range(len(batch.traj_ids)) if batch.traj_ids[i] == m]
        logs = [float(logprobs[i, t] - batch.old_logprobs[i, t]) for i in rows for t in range(12) if batch.loss_mask[i, t]]
        ratio[m], total[m] = math.exp(statistics.fmean(logs)), sum(float(batch.rewards[i].sum()) for i in rows)
    want = 0.0
    for start, size in ((0, 4), (4, 3), (7, 5)):
        group = [total[m] for m in range(start, start + size)]
        for m in range(start, start + size):
            a = (total[m] - statistics.fmean(group)) / (statistics.pstdev(group) + 1e-6)
            want -= min(ratio[m] * a, min(max(ratio[m], 0.9), 1.2) * a) / 12
    assert float(gradient(gspo(0.1, 0.2), batch, logprobs)[0]) == pytest.approx(want, abs=2e-5)


def test_all_tokens_of_a_trajectory_have_its_ratio_and_are_cut_together():
    batch = gspo(0.05, 0.05).advantages(example_batch(), identity)
    _, metrics = gspo(0.05, 0.05).loss(moved(batch), batch)
    for m in range(8):
        trained = batch.loss_mask & (batch.traj_ids[:, None] == m)
        assert len(metrics["ratio/clipped"][trained].unique()) == 1
    assert len(metrics["ratio/clipped"][batch.loss_mask].unique()) == 2  # some are cut, some are not


def test_at_ratio_one_the_gradient_is_reinforces():
    given = example_batch()
    batch = gspo().advantages(given, identity)
    got = gradient(gspo(), given, given.old_logprobs)[1]
    torch.testing.assert_close(got, -batch.advantages * loss_weights(batch.loss_mask, batch.traj_ids, "sequence", identity))
    assert got.any()


def test_turns_have_advantages_of_their_own_with_level_token():
    # Two members with two turns each: they earn 1 and 0 in the first, 0 and 4 in the second.
    given = example_batch((2,), tokens=12, seed=0)
    mask = torch.zeros_like(given.loss_mask)
    mask[:, [2, 3, 5, 6]] = True
    turn_ids = torch.full_like(given.turn_ids, -1)
    turn_ids[:, [2, 3]], turn_ids[:, [5, 6]] = 0, 1
    rewards = torch.zeros_like(given.rewards)
    rewards[:, 3], rewards[:, 6] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 4.0])
    given = replace(given, loss_mask=mask, turn_ids=turn_ids, rewards=rewards)
    token, sequence = (gspo(level=level, normalize=False).advantages(given, identity).advantages for level in ("token", "sequence"))
    assert token[:, [2, 3, 5, 6]].tolist() == [[-1.5, -1.5, -2, -2], [1.5, 1.5, 2, 2]]  # of 1 and 4 to go, then of 0 and 4
    assert sequence[:, [2, 3, 5, 6]].tolist() == [[-1.5] * 4, [1.5] * 4]


def test_in_episodes_of_one_turn_both_levels_are_the_same():
    given = example_batch()
    given = replace(given, turn_ids=torch.where(given.loss_mask, 0, -1))
    (one, slope), (other, other_slope) = (gradient(gspo(0.1, 0.2, level), given, moved(given)) for level in ("sequence", "token"))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(slope, other_slope)


def test_it_needs_whole_trajectories():
    assert gspo().unit == "trajectory" and gspo().needs == {"old_logprobs"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 2}, "algorithm.clip_low: expected 0 to 1, got 2"),
        ({"clip_high": -1}, "algorithm.clip_high: expected at least 0, got -1"),
        ({"level": "turn"}, "algorithm.level: expected one of token, sequence, got 'turn'"),
    ],
)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        gspo(**options)
