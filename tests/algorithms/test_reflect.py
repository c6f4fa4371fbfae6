"""Reflect, retry, reward: a table, GRPO as an oracle, and the laws."""

from dataclasses import replace

import pytest
import torch

from rlft.algorithms.grpo import grpo
from rlft.algorithms.reflect import reflect_retry_reward
from rlft.batching import collate
from rlft.errors import ConfigError
from rlft.rows import to_rows
from rlft.testing.checks import check_algorithm, example_batch
from rlft.types import Completion, Source, Task, Trajectory, Turn


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"kl_coef": 0.1}, {"overlong": "filter", "clip_high": 0.3}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(reflect_retry_reward(**options))


def play(index, *turns):
    """A trajectory from turns of (tag, reward), two tokens each after one of the environment's."""
    context, sources, made = [], [], []
    for tag, reward in turns:
        context, sources = [*context, 1], [*sources, Source.ENVIRONMENT]
        written = [*sources, Source.POLICY, Source.POLICY]
        made.append(Turn(context, Completion([5, 6], [-0.5] * 2, "stop", 0), {"role": "assistant"}, written, reward, tag))
        context, sources = [*context, 5, 6], written
    return Trajectory(Task("t", ()), index, tuple(made), "completed", "g")


def test_only_reflections_are_trained_and_only_with_each_other_compared():
    right = play(0, ("attempt", 1.0))
    helped = play(1, ("attempt", 0.0), ("reflection", 0.0), ("retry", 1.0))
    failed = play(2, ("attempt", 0.0), ("reflection", 0.0), ("retry", 0.0))
    algorithm = reflect_retry_reward(normalize=False)
    batch = collate([row for t in (right, helped, failed) for row in to_rows(t)], 0, algorithm.tags)
    batch = replace(batch, old_logprobs=batch.rollout_logprobs)
    # The reflections led to 1 and 0: 1/2 and -1/2. The answer that was right at once takes no part.
    got = algorithm.advantages(batch, lambda x: x).advantages
    assert got.tolist() == [[0] * 9, [0] * 4 + [0.5] * 2 + [0] * 3, [0] * 4 + [-0.5] * 2 + [0] * 3]
    among_all = grpo(normalize=False).advantages(batch, lambda x: x).advantages  # the control
    assert among_all[1, 4].item() == pytest.approx(1 / 3)


def test_where_every_trajectory_reflects_it_is_grpo():
    batch = example_batch()
    for normalize in (True, False):
        one, other = (make(normalize=normalize).advantages(batch, lambda x: x).advantages for make in (reflect_retry_reward, grpo))
        assert torch.equal(one, other) and one.any()


def test_nobody_who_reflects_gives_zeros():
    batch = example_batch()
    nobody = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    assert not reflect_retry_reward().advantages(nobody, lambda x: x).advantages.any()


def test_it_trains_reflections_and_needs_what_grpo_needs():
    assert reflect_retry_reward().tags == ("reflection",) and reflect_retry_reward().needs == grpo().needs


def test_an_option_that_is_wrong_says_so():
    with pytest.raises(ConfigError, match="algorithm.clip_low: expected 0 to 1, got 3"):
        reflect_retry_reward(clip_low=3)
