"""Decoupled PPO: the clip is around the proximal policy, the weight corrects for the behaviour policy."""

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.decoupled import decoupled_ppo
from rlft.algorithms.grpo import grpo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


def identity(x):
    return x


@pytest.mark.parametrize("options", [{}, {"is_mode": "truncate"}, {"is_cap": 1.5, "normalize": False, "kl_coef": 0.1}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(decoupled_ppo(**options))


@pytest.mark.parametrize("mode", ["mask", "truncate"])
def test_a_tokens_loss_agrees_with_a_naive_oracle(mode):
    algorithm = decoupled_ppo(0.1, 0.2, is_cap=1.5, is_mode=mode)
    batch = algorithm.advantages(example_batch(), identity)
    g = torch.Generator().manual_seed(5)
    logprobs = torch.where(batch.loss_mask, batch.old_logprobs + 0.3 * torch.randn(batch.rewards.shape, generator=g), 0.0)
    loss, _ = algorithm.loss(logprobs, batch)
    dropped = 0
    for i in range(len(batch.traj_ids)):
        for t in range(12):
            if not batch.loss_mask[i, t]:
                continue
            now, proximal, behaviour = (float(x[i, t]) for x in (logprobs, batch.old_logprobs, batch.rollout_logprobs))
            ratio, weight, a = math.exp(now - proximal), math.exp(proximal - behaviour), float(batch.advantages[i, t])
            dropped += weight > 1.5
            weight = weight if weight <= 1.5 else 0.0 if mode == "mask" else 1.5
            want = -weight * min(ratio * a, min(max(ratio, 0.9), 1.2) * a)
            assert float(loss[i, t]) == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert dropped > 3


def test_at_the_steps_start_nothing_is_clipped_however_old_the_samples_are():
    algorithm = decoupled_ppo(is_cap=1e9, is_mode="truncate")
    batch = algorithm.advantages(example_batch(), identity)
    logprobs = batch.old_logprobs.clone().requires_grad_()
    loss, metrics = algorithm.loss(logprobs, batch)
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, -batch.advantages * batch.is_weights)
    assert not metrics["ratio/clipped"].any()
    # The control: a clip around the policy that sampled would cut some of these.
    ratio = (batch.old_logprobs - batch.rollout_logprobs).exp()
    assert ((ratio > 1.2) & (batch.advantages > 0)).any()


def test_it_is_grpo_with_importance_weights():
    given = example_batch()
    given = replace(given, rollout_logprobs=given.rollout_logprobs - 1.0 * given.loss_mask)  # some tokens weigh more than 5
    algorithms = [decoupled_ppo(), grpo(is_cap=5.0, is_mode="mask"), grpo(is_cap=5.0)]
    one, same, truncated = (a.loss(given.old_logprobs + 0.1, a.advantages(given, identity))[0] for a in algorithms)
    assert torch.equal(one, same) and not torch.equal(one, truncated)


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_grpos_scaled_or_not(normalize):
    given = example_batch()
    mine, same, other = (
        a.advantages(given, identity).advantages
        for a in (decoupled_ppo(normalize=normalize), grpo(normalize=normalize), grpo(normalize=not normalize))
    )
    assert torch.equal(mine, same) and not torch.equal(mine, other)


def test_without_weights_it_is_an_error():
    with pytest.raises(ConfigError, match="algorithm.is_cap: expected a number, or 'grpo' for no weights, got None"):
        decoupled_ppo(is_cap=None)
