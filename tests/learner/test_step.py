"""What an update leaves out: the pass before a lone optimizer step, and a step from which nothing can be learned."""

from dataclasses import replace

import pytest
import torch

from rlft.algorithms import BUILTIN
from rlft.algorithms.grpo import grpo
from rlft.algorithms.kto import kto
from rlft.algorithms.rft import rft
from rlft.algorithms.sft import sft
from rlft.learner.step import early_needs, late_needs, num_signals, parts, with_own_old_logprobs
from rlft.names import import_object
from rlft.testing.checks import example_batch

OPTIONS = {"dr_grpo": {"max_length": 12}, "gdpo": {"weights": {"a": 1.0}}, "score": {"stage": 2}}
READS_OLD = {"clip_cov", "kl_cov", "decoupled_ppo", "kto"}  # their advantages compare or weigh by it


def made(name, **options):
    return import_object(BUILTIN[name])(**OPTIONS.get(name, {}), **options)


@pytest.mark.parametrize("name", BUILTIN)
def test_one_optimizer_step_asks_for_old_logprobs_only_where_advantages_read_them(name):
    algorithm = made(name)
    before, after = early_needs(algorithm), late_needs(algorithm, num_steps=1)
    assert ("old_logprobs" in before | after) == (name in READS_OLD)
    assert late_needs(algorithm, 2) | before == algorithm.needs  # the control: two steps move the policy, and need them


@pytest.mark.parametrize(
    ("options", "read"),
    [({}, False), ({"kl_coef": 0.1}, False), ({"kl_coef": 0.1, "kl_in": "reward"}, True), ({"is_cap": 2.0}, True)],
    ids=str,
)
def test_a_kl_in_the_reward_and_importance_weights_read_old_logprobs(options, read):
    assert ("old_logprobs" in early_needs(grpo(**options))) == read


def test_a_step_of_its_own_has_a_ratio_of_exactly_one():
    batch = replace(example_batch(), old_logprobs=None)
    logprobs = batch.rollout_logprobs.clone().requires_grad_()
    filled = with_own_old_logprobs(batch, logprobs, grpo())
    assert filled.old_logprobs is not None and torch.equal(filled.old_logprobs, logprobs) and not filled.old_logprobs.requires_grad
    assert with_own_old_logprobs(batch, logprobs, sft()) is batch
    given = example_batch()
    assert with_own_old_logprobs(given, logprobs, grpo()) is given  # the control: what a pass filled stays


def test_a_step_without_advantages_has_no_signal_and_one_token_is_one():
    batch = replace(example_batch(), advantages=torch.zeros(10, 12))
    assert num_signals(batch, grpo()) == 0
    row, token = batch.loss_mask.nonzero()[0].tolist()
    one = batch.advantages.clone()
    one[row, token] = -0.5
    assert num_signals(replace(batch, advantages=one), grpo()) == 1
    unmasked = one.roll(-token, 1)  # on a prompt's token it is nothing
    assert not batch.loss_mask[row, 0] and num_signals(replace(batch, advantages=unmasked), grpo()) == 0
    spoiled = torch.full_like(one, torch.nan)
    assert num_signals(replace(batch, advantages=spoiled), grpo()) == batch.loss_mask.sum()  # it is skipped as not finite, and counted


MORE = [grpo(kl_coef=0.1), grpo(entropy_coef=0.01), kto(), sft(), made("ppo"), made("vapo")]


@pytest.mark.parametrize("algorithm", MORE, ids=lambda algorithm: algorithm.name)
def test_a_loss_with_more_than_advantages_always_has_signal(algorithm):
    batch = replace(example_batch(), advantages=torch.zeros(10, 12))
    assert num_signals(batch, algorithm) == batch.loss_mask.sum()


def test_without_a_trained_token_nothing_has_signal():
    batch = example_batch()
    wrong = rft(threshold=100.0).advantages(batch, lambda x: x)
    assert num_signals(wrong, rft()) == 0
    assert num_signals(rft(threshold=-100.0).advantages(batch, lambda x: x), rft()) > 0  # the control
    alone = made("dpo").advantages(replace(batch, rewards=torch.zeros_like(batch.rewards)), lambda x: x)
    assert num_signals(alone, made("dpo")) == 0  # no pair
    assert num_signals(made("dpo").advantages(batch, lambda x: x), made("dpo")) > 0


def test_the_parts_of_an_update_are_its_steps_in_order():
    batch, generator = example_batch(), torch.Generator().manual_seed(0)
    cut = parts(batch, 2, 2, generator)
    assert [(part.done, part.share) for part in cut] == [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25)]
    assert sum(int(part.batch.loss_mask.sum()) for part in cut) == 2 * int(batch.loss_mask.sum())
