"""Reflect, retry, reward: a table, naive loops and GRPO as oracles, and the laws."""

import math
import random
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.grpo import grpo
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.algorithms.reflect import reflect_retry_reward
from rlft.errors import ConfigError
from rlft.learner.batching import collate
from rlft.learner.rows import to_rows
from rlft.testing.checks import check_algorithm, example_batch
from rlft.types import Completion, Source, Task, Trajectory, Turn


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"kl_coef": 0.1}, {"overlong": "filter", "clip_high": 0.3}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(reflect_retry_reward(**options))


def play(index, *turns, group="g", reward=0.0):
    """A trajectory from turns of (tag, reward, tokens or else two), each after one token of the environment's; before
    a turn "forget" the history is dropped, so that a new row begins."""
    context, sources, made = [], [], []
    for tag, earned, *length in turns:
        if tag == "forget":
            context, sources = [], []
            continue
        ids = [5, 6, 7, 8][: length[0] if length else 2]
        context, sources = [*context, 1], [*sources, Source.ENVIRONMENT]
        written = [*sources, *[Source.POLICY] * len(ids)]
        made.append(Turn(context, Completion(ids, [-0.5] * len(ids), "stop", 0), {"role": "assistant"}, written, earned, tag))
        context, sources = [*context, *ids], written
    return Trajectory(Task("t", ()), index, tuple(made), "completed", group, reward)


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


# Which members of each group reflect: most, one, all, a lone one, none, most.
REFLECTS = ((1, 1, 0, 1), (0, 1, 0), (1, 1), (1,), (0, 0), (1, 0, 1, 1, 1))


def ragged(seed):
    """Trajectories with turns of one to four tokens and rewards of eighths; some go on in a second row to reflect or to retry."""
    r, made = random.Random(seed), []
    for g, members in enumerate(REFLECTS):
        for i, reflects in enumerate(members):
            turns = [("attempt", r.randint(-8, 8) / 8, r.randint(1, 4))]
            for tag in ("reflection", "retry") if reflects else ():
                turns += [("forget", 0.0)] * (r.random() < 0.4) + [(tag, r.randint(-8, 8) / 8, r.randint(1, 4))]
            made.append(play(i, *turns, group=f"g{g}", reward=r.randint(0, 4) / 4))
    return made


def naive_step(trajectories, batch, new, low, high, normalize, tags=("reflection",), all_compared=False):
    """The step's loss and its slope at every token, with loops over groups and tagged tokens."""
    advantage = {}
    for group in {t.group_id for t in trajectories}:
        earned = {}
        for m, t in enumerate(trajectories):
            if t.group_id == group and (all_compared or any(turn.tag in tags for turn in t.turns)):
                earned[m] = t.reward + sum(turn.reward for turn in t.turns)
        for m, total in earned.items():
            scale = statistics.pstdev(earned.values()) + 1e-6 if normalize else 1.0
            advantage[m] = (total - statistics.fmean(earned.values())) / scale
    written = (batch.turn_ids >= 0).nonzero().tolist()
    tagged = [(b, t) for b, t in written if trajectories[batch.traj_ids[b]].turns[batch.turn_ids[b, t]].tag in tags]
    loss, slopes = 0.0, torch.zeros_like(new)
    for p in tagged:
        a, ratio = advantage[int(batch.traj_ids[p[0]])], math.exp(float(new[p] - batch.old_logprobs[p]))
        free, bounded = ratio * a, min(max(ratio, 1 - low), 1 + high) * a
        loss -= min(free, bounded) / len(tagged)
        slopes[p] = -free / len(tagged) if free <= bounded else 0.0
    return loss, slopes


@pytest.mark.parametrize("normalize", [True, False])
def test_a_step_agrees_with_naive_loops_over_groups_and_tagged_tokens(normalize):
    algorithm, trajectories, g = reflect_retry_reward(0.1, 0.3, normalize), ragged(seed=3), torch.Generator().manual_seed(0)
    batch = collate([row for t in trajectories for row in to_rows(t)], 0, algorithm.tags)
    assert len(batch.traj_ids) > len(trajectories) and len(set(batch.attention_mask.sum(-1).tolist())) > 4
    batch = replace(batch, old_logprobs=-2 * torch.rand(batch.token_ids.shape, generator=g))
    new = (batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=g)).requires_grad_()
    filled = algorithm.advantages(batch, lambda x: x)
    weights = loss_weights(filled.loss_mask, filled.traj_ids, algorithm.aggregation, lambda x: x)
    total = weighted_sum(algorithm.loss(new, filled)[0], weights)
    (gradient,) = torch.autograd.grad(total, new)
    loss, slopes = naive_step(trajectories, batch, new.detach(), 0.1, 0.3, normalize)
    assert total.item() == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(gradient, slopes, atol=1e-6, rtol=1e-4)
    # The control: compared with the whole group, trained on the retry too, or clipped alike on both sides it is another step.
    for wrong in ({"all_compared": True}, {"tags": ("reflection", "retry")}, {"high": 0.1}):
        other, others = naive_step(trajectories, batch, new.detach(), **{"low": 0.1, "high": 0.3, "normalize": normalize, **wrong})
        assert abs(other - loss) > 1e-3 and (others - slopes).abs().max() > 1e-3, wrong


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
