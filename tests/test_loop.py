import asyncio
import itertools
from dataclasses import replace

import pytest

from rlft.algorithms.grpo import dr_grpo, grpo
from rlft.algorithms.reinforce import reinforce
from rlft.envs.single_turn import SingleTurn
from rlft.errors import RewardError
from rlft.loop import check_failures, train
from rlft.testing.fakes import FakeLearner, FakeRollouts, TinyLM
from rlft.types import GroupRef, Task, TrajectoryInfo

TASKS = [Task(c, ({"role": "user", "content": c},)) for c in "xyz"]


class Recorder:
    def __init__(self):
        self.rows = []

    def log(self, step, metrics):
        self.rows.append({"step": step, **metrics})


def early_letter(trajectory):
    return float(trajectory.text[-1] < "@")  # the lower half of the vocabulary


def grading(reward):
    async def grade(groups):
        return [replace(g, trajectories=tuple(replace(t, reward=reward(t)) for t in g.trajectories)) for g in groups]

    return grade


def run(algorithm, reward=early_letter, steps=50, lr=10.0):
    import torch

    torch.manual_seed(0)
    model, recorder, seen = TinyLM(), Recorder(), []
    rollouts = FakeRollouts(model, SingleTurn, grading(reward), tasks_per_step=3, group_size=8)

    async def after_step(step):
        seen.append((step, rollouts.version))

    asyncio.run(train(itertools.cycle(TASKS), rollouts, FakeLearner(model, lr), algorithm, recorder, steps, 0.0, after_step))
    return recorder.rows, seen


def gain(rows):
    rewards = [row["reward/mean"] for row in rows]
    return sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5


@pytest.mark.parametrize(
    "algorithm", [grpo(), grpo(kl_coef=0.01), grpo(aggregation="sequence"), dr_grpo(max_length=1), reinforce()], ids=lambda a: a.name
)
def test_a_toy_policy_learns_to_earn_the_reward(algorithm):
    assert gain(run(algorithm)[0]) > 0.25


def test_a_reward_that_says_nothing_teaches_nothing():
    assert gain(run(grpo(), reward=lambda t: 0.5)[0]) == 0


def test_every_step_publishes_its_weights_before_the_next_one_rolls_out():
    rows, seen = run(grpo(), steps=4)
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [row["rollout/staleness"] for row in rows] == [0, 0, 0, 0]


def graded(*statuses):
    infos = [TrajectoryInfo("t", s, 0.0, {}, 1, 1, 1, 0, error=f"cause {i}" if s == "failed" else "") for i, s in enumerate(statuses)]
    return [GroupRef("g", tuple(infos), [], 1)]


def test_a_run_stops_with_the_first_causes_when_too_many_trajectories_fail():
    groups = graded("failed", "failed", "failed", "failed", "completed")
    with pytest.raises(RewardError, match=r"4 of 5 .*max_failed = 0.5.*\n  - cause 0\n  - cause 1\n  - cause 2$"):
        check_failures(groups, 0.5)


def test_a_few_failures_are_borne():
    check_failures(graded("failed", "completed", "truncated"), 0.5)
    check_failures(graded("completed"), 0.0)


def test_a_step_without_a_single_graded_trajectory_stops_the_run_whatever_the_limit():
    with pytest.raises(RewardError, match="1 of 1"):
        check_failures(graded("failed"), 1.0)
