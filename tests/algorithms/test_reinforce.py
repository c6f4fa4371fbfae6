"""REINFORCE with and without its baseline."""

import torch

from rlft.algorithms.reinforce import reinforce
from rlft.testing.checks import check_algorithm, example_batch


def test_it_keeps_the_laws():
    check_algorithm(reinforce())
    check_algorithm(reinforce(baseline=False), baseline=False)


def test_the_gradient_is_minus_the_advantage():
    batch = reinforce().advantages(example_batch(), lambda x: x)
    logprobs = torch.full_like(batch.rewards, -3.0, requires_grad=True)
    reinforce().loss(logprobs, batch)[0].sum().backward()
    assert torch.equal(logprobs.grad, -batch.advantages) and batch.advantages.any()


def test_without_a_baseline_the_advantage_is_the_reward():
    batch = reinforce(baseline=False).advantages(example_batch((1, 1)), lambda x: x)
    assert batch.advantages[batch.loss_mask].unique().tolist() == sorted(set(batch.rewards.sum(-1).tolist()))


def test_it_needs_no_forward_pass():
    assert reinforce().needs == frozenset()
