"""CISPO: a naive oracle, the laws, and gradients that are never cut."""

import math

import pytest
import torch

from rlft.algorithms.advantages import group_normalized, outcomes
from rlft.algorithms.cispo import cispo
from rlft.algorithms.grpo import grpo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


def identity(x):
    return x


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_low": 0.2, "clip_high": 0.3}, {"normalize": False, "kl_coef": 0.1, "kl": "k3+", "is_cap": 2.0, "overlong": "filter"}],
    ids=str,
)
def test_it_keeps_the_laws(options):
    check_algorithm(cispo(**options))


def test_every_tokens_gradient_is_the_bounded_ratio_times_the_advantage():
    given = example_batch()
    g = torch.Generator().manual_seed(1)
    logprobs = (given.old_logprobs + torch.randn(given.rewards.shape, generator=g)).requires_grad_()
    batch = cispo(0.4, 0.5).advantages(given, identity)
    loss, metrics = cispo(0.4, 0.5).loss(logprobs, batch)
    loss.sum().backward()
    totals, group_ids = outcomes(given)
    advantages = group_normalized(totals, group_ids)[given.traj_ids]
    for i in range(len(given.traj_ids)):
        for t in range(12):
            ratio = math.exp(float(logprobs[i, t].detach() - given.old_logprobs[i, t]))
            want = -min(max(ratio, 0.6), 1.5) * float(advantages[i]) if given.loss_mask[i, t] else 0.0
            assert float(logprobs.grad[i, t]) == pytest.approx(want, rel=1e-4, abs=1e-6)
            assert bool(metrics["ratio/clipped"][i, t]) == bool(given.loss_mask[i, t] and not 0.6 <= ratio <= 1.5)


def test_no_gradient_is_cut_where_the_clipped_surrogate_cuts():
    given = example_batch()
    cut = {}
    for algorithm in (cispo(0.2, 0.2), grpo()):
        logprobs = (given.old_logprobs + 0.5).requires_grad_()
        batch = algorithm.advantages(given, identity)
        algorithm.loss(logprobs, batch)[0].sum().backward()
        cut[algorithm.name] = bool(((logprobs.grad == 0) & (batch.advantages != 0)).any())
    assert cut == {"cispo": False, "grpo": True}


def test_without_a_lower_bound_an_unlikely_token_weighs_little():
    given = example_batch()
    batch = cispo().advantages(given, identity)
    logprobs = (given.old_logprobs - 5.0).requires_grad_()
    cispo().loss(logprobs, batch)[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, -math.exp(-5) * batch.advantages)


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_grpos_scaled_or_not(normalize):
    given = example_batch()
    mine, same, other = (
        a.advantages(given, identity).advantages
        for a in (cispo(normalize=normalize), grpo(normalize=normalize), grpo(normalize=not normalize))
    )
    assert torch.equal(mine, same) and not torch.equal(mine, other)


def test_a_likely_token_weighs_five_at_most_where_nothing_is_said():
    given = example_batch()
    batch = cispo().advantages(given, identity)
    logprobs = (given.old_logprobs + 5.0).requires_grad_()
    cispo().loss(logprobs, batch)[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, -5 * batch.advantages)


@pytest.mark.parametrize("option", ["clip_low", "clip_high"])
def test_bounds_below_zero_are_errors(option):
    with pytest.raises(ConfigError, match=f"algorithm.{option}: expected at least 0, got -0.1"):
        cispo(**{option: -0.1})
