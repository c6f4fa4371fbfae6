"""Supervised fine-tuning through the algorithm interface."""

from dataclasses import replace

import torch

from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.algorithms.sft import sft
from rlft.learner.batching import collate
from rlft.learner.rows import demonstration_row
from rlft.testing.checks import check_algorithm, example_batch


def test_it_keeps_the_laws():
    check_algorithm(sft(), baseline=False)


def test_the_step_is_the_cross_entropy_of_the_targets():
    g = torch.Generator().manual_seed(0)
    rows = [demonstration_row([1, 2], [3, 4, 5], "a"), demonstration_row([1], [6], "b")]
    batch = sft().advantages(collate(rows, pad_id=0), lambda x: x)
    logits = torch.randn(2, batch.token_ids.shape[1], 7, generator=g)
    logprobs = logits.log_softmax(-1).gather(-1, batch.token_ids[..., None])[..., 0]
    weights = loss_weights(batch.loss_mask, batch.traj_ids, "token", lambda x: x)
    got = weighted_sum(sft().loss(logprobs, batch)[0], weights)
    targets = torch.tensor([3, 4, 5, 6])
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(torch.cat([logits[0, 2:5], logits[1, 1:2]]), targets))


def test_targets_are_weighed_when_the_batch_has_weights():
    batch = example_batch()
    plain, _ = sft().loss(batch.old_logprobs, batch)
    weighed, metrics = sft().loss(batch.old_logprobs, replace(batch, ce_weights=torch.full_like(batch.rewards, 0.25)))
    torch.testing.assert_close(weighed, 0.25 * plain)
    torch.testing.assert_close(metrics["sft/cross_entropy"], plain)


def test_it_needs_nothing_and_changes_nothing():
    batch = example_batch()
    assert sft().needs == frozenset() and sft().advantages(batch, lambda x: x) is batch
