"""What an algorithm declares of the samples that it can learn from holds for its gradient."""

from dataclasses import replace

import pytest
import torch

from rlft.algorithms import BUILTIN
from rlft.algorithms.grpo import grpo
from rlft.algorithms.masking import loss_weights
from rlft.algorithms.rise import rise
from rlft.names import import_object
from rlft.testing.checks import example_batch

OPTIONS = {"score": {"stage": 2, "kl_coef": 0.0}, "gdpo": {"weights": {"part": 1.0}}, "dr_grpo": {"max_length": 12}}
IMITATE = {"dpo", "ipo", "kto", "rft", "rise", "rwr", "spin"}
NO_REWARD = {"spin"}  # its pairs are of demonstrations


def made(name):
    return import_object(BUILTIN[name])(**OPTIONS.get(name, {}))


def gradient(algorithm, totals, group_ids):
    """Of a step of one-row trajectories that earned `totals`, by log-probability."""
    batch = example_batch((1,) * len(totals), tokens=8, seed=3)
    last = torch.where(batch.loss_mask, torch.arange(8), -1).amax(-1, keepdim=True) == torch.arange(8)
    totals = torch.tensor(totals)
    batch = replace(
        batch,
        rewards=torch.where(last, totals[:, None], 0.0),
        parts=totals[:, None],
        group_ids=torch.tensor(group_ids),
        turn_ids=torch.where(batch.loss_mask, 0, -1),
        truncated=torch.zeros_like(batch.truncated),
        baselines=torch.zeros(len(totals)),
        token_ids=torch.where(batch.attention_mask, 7, 0),
    )
    filled = algorithm.advantages(batch, lambda x: x)
    logprobs = batch.old_logprobs.clone().requires_grad_()
    per_token, _ = algorithm.loss(logprobs, filled)
    torch.where(filled.loss_mask, per_token, 0.0).sum().backward()
    return logprobs.grad


@pytest.mark.parametrize("name", sorted(BUILTIN.keys() - NO_REWARD))
def test_rewards_of_lone_trajectories_teach_exactly_where_the_algorithm_says_so(name):
    algorithm, alone = made(name), [0, 1, 2, 3]
    one, other = gradient(algorithm, [0.0, 1.0, 0.0, 1.0], alone), gradient(algorithm, [1.0, 0.0, 0.0, 1.0], alone)
    assert torch.equal(one, other) == (algorithm.min_group > 1)
    pairs = [0, 0, 1, 1]  # the control: in groups they teach all of them
    assert not torch.equal(gradient(algorithm, [0.0, 1.0, 0.0, 1.0], pairs), gradient(algorithm, [1.0, 0.0, 0.0, 1.0], pairs))


def test_truncated_samples_are_for_those_that_imitate_alone():
    assert {name for name in BUILTIN if made(name).may_truncate} == IMITATE
    assert not rise(kl_coef=0.1).may_truncate and not rise(is_cap=2.0).may_truncate and not grpo(kl_coef=0.1).may_truncate


def by_turns(earned, group_ids, algorithm):
    """Gradient, [M, T], of trajectories of two turns that earned so, two tokens each."""
    batch = example_batch((1,) * len(earned), tokens=8, seed=3)
    place = batch.loss_mask.cumsum(-1)
    second = batch.loss_mask & (place > 1)
    last = torch.where(batch.loss_mask, torch.arange(8), -1).amax(-1, keepdim=True) == torch.arange(8)
    first = batch.loss_mask & (place == 1)
    earned = torch.tensor(earned)
    batch = replace(
        batch,
        rewards=torch.where(first, earned[:, :1], 0.0) + torch.where(last, earned[:, 1:], 0.0),
        parts=earned.sum(-1, keepdim=True),
        group_ids=torch.tensor(group_ids),
        turn_ids=torch.where(second, 1, torch.where(batch.loss_mask, 0, -1)),
        truncated=torch.zeros_like(batch.truncated),
        baselines=torch.zeros(len(earned)),
        token_ids=torch.where(batch.attention_mask, 7, 0),
        pass_rates=torch.full((len(earned),), 0.5),
    )
    filled = algorithm.advantages(batch, lambda x: x)
    logprobs = batch.old_logprobs.clone().requires_grad_()
    per_token, _ = algorithm.loss(logprobs, filled)
    weights = loss_weights(filled.loss_mask, filled.traj_ids, algorithm.aggregation, lambda x: x, algorithm.max_length)
    torch.where(filled.loss_mask, per_token * weights, 0.0).sum().backward()
    return logprobs.grad


# What such a group teaches does not show in this batch: parts, states or a pass rate of their own, a baseline or a scale of the whole step.
ELSEWHERE = {"gdpo", "gigpo", "hgpo", "kl_cov", "nft", "reflect_retry_reward", "reinforce", "reinforce_pp_baseline"}


@pytest.mark.parametrize("name", sorted(BUILTIN.keys() - NO_REWARD - ELSEWHERE))
def test_groups_that_earned_the_same_in_all_teach_nothing_exactly_where_the_algorithm_says_so(name):
    earned = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]  # the first two are such a group
    found = by_turns(earned, [0, 0, 1, 1], made(name))
    assert bool((found[:2] == 0).all()) == made(name).by_outcome
    assert (found[2:] != 0).any()  # the control: the others differ


@pytest.mark.parametrize("name", sorted(ELSEWHERE | NO_REWARD))
def test_others_do_not_say_so(name):
    assert not made(name).by_outcome
