"""A token of which two policies think altogether differently keeps every loss and every gradient finite."""

from functools import partial

import pytest
import torch

from rlft.algorithms import losses
from rlft.algorithms.kl import k3, penalty
from rlft.algorithms.ratios import MAX_LOG_RATIO, beyond, bounded_exp

MASK = torch.ones(1, 4, dtype=torch.bool)
IDS = torch.zeros(1, dtype=torch.long)
ADVANTAGES = torch.tensor([[0.0, 1.0, -1.0, 0.0]])
LOSSES = {
    "ppo_clip": partial(losses.ppo_clip, advantages=ADVANTAGES, clip_low=0.2, clip_high=0.2),
    "gspo": partial(losses.gspo, advantages=ADVANTAGES, mask=MASK, traj_ids=IDS, clip_low=3e-4, clip_high=4e-4),
    "gspo token": partial(losses.gspo, advantages=ADVANTAGES, mask=MASK, traj_ids=IDS, clip_low=3e-4, clip_high=4e-4, level="token"),
    "cispo": partial(losses.cispo, advantages=ADVANTAGES, clip_low=1.0, clip_high=4.0),
    "gmpo": partial(losses.gmpo, advantages=ADVANTAGES, mask=MASK, traj_ids=IDS, clip_low=0.4, clip_high=0.4),
}


def gradient(loss, log_ratios):
    """Loss per token and its gradient in the log-probabilities, where the policies differ so."""
    old = torch.full((1, 4), -200.0)
    logprobs = (old + torch.tensor([log_ratios])).requires_grad_()
    value = loss(logprobs, old)
    value = value[0] if isinstance(value, tuple) else value
    (found,) = torch.autograd.grad(value.sum(), logprobs)
    return value, found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("far", [88.0, 190.0])
def test_a_token_far_away_leaves_loss_and_gradient_finite(name, far):
    value, found = gradient(LOSSES[name], [far, far, far, 0.0])
    assert value.isfinite().all() and found.isfinite().all()


def test_without_a_bound_they_are_not():
    def unbounded(logprobs, old):
        ratio = (logprobs - old).exp()
        return -torch.minimum(ratio * ADVANTAGES, ratio.clamp(0.8, 1.2) * ADVANTAGES)

    assert gradient(unbounded, [190.0, 190.0, 190.0, 0.0])[1].isnan().any()


@pytest.mark.parametrize("form", ["k3", "k3+", "k3_ratio"])
def test_the_penalty_of_a_token_that_the_reference_finds_far_likelier_is_finite_and_bounded(form):
    def loss(logprobs, old):
        return penalty(form, logprobs, old + 150.0, old)

    value, found = gradient(loss, [0.0, 0.0, 0.0, 0.0])
    assert value.isfinite().all() and found.abs().max() <= 22_027


def test_near_tokens_are_not_touched():
    log_ratio = torch.linspace(-30, MAX_LOG_RATIO, 100, dtype=torch.float64)
    assert torch.equal(bounded_exp(log_ratio), log_ratio.exp()) and not beyond(log_ratio).any()
    other = -1.0 + log_ratio
    assert torch.equal(k3(torch.tensor(-1.0, dtype=torch.float64), other), torch.expm1(other + 1) - (other + 1))


def test_what_is_bounded_is_counted():
    assert beyond(torch.tensor([9.9, 10.1, 300.0])).tolist() == [0.0, 1.0, 1.0]
