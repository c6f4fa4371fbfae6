"""RLOO: a table, a naive oracle of the whole step, and the laws."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.rloo import rloo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch

OPTIONS = [{}, {"clip_low": 0.1, "clip_high": 0.4}, {"kl_coef": 0.2}, {"kl_coef": 0.2, "kl": "k3", "kl_in": "loss"}, {"overlong": "filter"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(rloo(**options))


def test_advantages_as_worked_by_hand():
    batch = example_batch((2, 1))
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([1.0, 0.25, 5.0])
    filled = rloo().advantages(replace(batch, rewards=rewards), lambda x: x)
    expected = torch.tensor([0.75, -0.75, 0.0])[:, None].expand_as(rewards)  # 1 - 0.25, 0.25 - 1, alone
    assert filled.advantages.tolist() == torch.where(batch.loss_mask, expected, 0.0).tolist()


def test_a_step_agrees_with_a_naive_oracle():
    batch = example_batch((4, 3, 1, 5), seed=3)
    algorithm = rloo(clip_low=0.1, clip_high=0.3, kl_coef=0.2)
    new = batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(0))
    got, _ = algorithm.loss(new, algorithm.advantages(batch, lambda x: x))
    total, group = {}, {}
    for b, m in enumerate(batch.traj_ids.tolist()):
        penalty = sum(float(batch.old_logprobs[b, t] - batch.ref_logprobs[b, t]) for t in range(12) if batch.loss_mask[b, t])
        total[m] = total.get(m, 0.0) + float(batch.rewards[b].sum()) - 0.2 * penalty
        group[m] = int(batch.group_ids[b])
    for b, m in enumerate(batch.traj_ids.tolist()):
        others = [total[n] for n in total if group[n] == group[m] and n != m]
        advantage = total[m] - statistics.fmean(others) if others else 0.0
        for t in range(12):
            ratio = math.exp(float(new[b, t] - batch.old_logprobs[b, t]))
            want = -min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage) if batch.loss_mask[b, t] else 0.0
            assert float(got[b, t]) == pytest.approx(want, abs=1e-5)


def test_at_the_first_update_the_gradient_is_reinforces():
    batch = rloo().advantages(example_batch(), lambda x: x)
    logprobs = batch.old_logprobs.clone().requires_grad_()
    rloo().loss(logprobs, batch)[0].sum().backward()
    assert torch.equal(logprobs.grad, -batch.advantages) and batch.advantages.any()


def test_an_option_that_is_wrong_says_so():
    with pytest.raises(ConfigError, match="algorithm.clip_low: expected 0 to 1, got 2"):
        rloo(clip_low=2)
    with pytest.raises(ConfigError, match="algorithm.kl needs kl_coef > 0"):
        rloo(kl="k2")
