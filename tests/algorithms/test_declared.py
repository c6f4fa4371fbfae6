"""What an algorithm declares of the samples that it can learn from holds for its gradient."""

from dataclasses import replace

import pytest
import torch

from rlft.algorithms import BUILTIN
from rlft.algorithms.grpo import grpo
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
