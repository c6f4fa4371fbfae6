import asyncio
import itertools
from dataclasses import replace

import pytest

from rlft.algorithms.base import Control
from rlft.algorithms.grpo import dr_grpo, grpo
from rlft.algorithms.reinforce import reinforce
from rlft.data.ledger import Ledger, Record, Right
from rlft.envs.single_turn import SingleTurn
from rlft.errors import RewardError
from rlft.loop import Plan, Progress, check_failures, following, train
from rlft.testing.fakes import FakeLearner, FakeRollouts, FakeTracker, TinyLM
from rlft.types import GroupRef, Task, TrajectoryInfo

TASKS = [Task(c, ({"role": "user", "content": c},)) for c in "xyz"]


def early_letter(trajectory):
    return float(trajectory.text[-1] < "@")  # the lower half of the vocabulary


def grading(reward):
    async def grade(groups):
        return [replace(g, trajectories=tuple(replace(t, reward=reward(t)) for t in g.trajectories)) for g in groups]

    return grade


def run(algorithm, reward=early_letter, steps=50, lr=10.0, start=None, **plan):
    import torch

    torch.manual_seed(0)
    model, recorder, seen = TinyLM(), FakeTracker(), []
    rollouts = FakeRollouts(model, SingleTurn, grading(reward), tasks_per_step=3, group_size=8)

    async def after_step(now, metrics):
        seen.append((now, rollouts.version))
        return now.step == 40

    learner, plan = FakeLearner(model, lr), Plan(steps, 0.0, **plan)
    asyncio.run(train(itertools.cycle(TASKS), rollouts, learner, algorithm, recorder, plan, start or Progress(), after_step))
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
    assert [(now.step, version) for now, version in seen] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [row["rollout/staleness"] for row in rows] == [0, 0, 0, 0]


def test_a_loop_goes_on_where_it_stood_and_ends_with_its_stage_or_when_it_is_told_to():
    rows, seen = run(grpo(), steps=5, start=Progress(step=12, stage_step=2))
    assert [row["step"] for row in rows] == [13, 14, 15] and seen[-1][0] == Progress(15, 5, 9)
    assert [row["rollout/staleness"] for row in rows] == [0, 0, 0]
    assert run(grpo(), steps=9, start=Progress(step=38))[0][-1]["step"] == 40  # after_step says so


def test_the_ledger_counts_every_trajectory_of_a_step_and_the_learner_gets_its_rates():
    ledger = Ledger({"x": Record(8, 8, 1)})
    run(grpo(), steps=2, ledger=ledger, reward=lambda t: float(t.task.id == "x" and t.index < 4))
    assert {c: ledger[c] for c in "xyz"} == {"x": Record(24, 16, 2), "y": Record(16, 0, 2), "z": Record(16, 0, 2)}
    strict = Ledger()
    run(grpo(), steps=1, ledger=strict, right=Right(threshold=1.5))
    assert strict["x"].passes == 0


def test_values_that_move_follow_their_rule_step_by_step_and_are_logged():
    def halve(value, metrics, done):
        return value / 2 if done < 3 else metrics["reward/mean"]

    moving = replace(grpo(kl_coef=1.0), controls={"kl_coef": Control(1.0, halve)})
    start = Progress(temperature=0.7, controls={"kl_coef": 1.0})
    rows, seen = run(moving, steps=4, start=start, controls=moving.controls, temperature=Control(0.7, lambda t, metrics, done: t + 0.1))
    assert [row["control/kl_coef"] for row in rows[:3]] == [1.0, 0.5, 0.25]
    assert rows[3]["control/kl_coef"] == rows[2]["reward/mean"]
    assert [row["control/temperature"] for row in rows] == pytest.approx([0.7, 0.8, 0.9, 1.0])
    still, _ = run(grpo(kl_coef=1.0), steps=2)
    assert not any(name.startswith("control/") for name in still[0])


def test_the_next_value_is_made_from_the_steps_of_the_stage():
    plan = Plan(9, controls={"kl_coef": Control(0.0, lambda value, metrics, done: float(done))})
    assert following(Progress(100, 3, 7, 1.0, {"kl_coef": 3.0}), plan, {}, 11) == Progress(101, 4, 11, 1.0, {"kl_coef": 4.0})


def test_the_learner_is_told_the_temperature_of_its_rows():
    told = []

    class Told(FakeLearner):
        async def update(self, groups, algorithm, setting):
            told.append((setting.temperature, dict(setting.pass_rates)))
            return {}

    rollouts = FakeRollouts(TinyLM(), SingleTurn, grading(early_letter), tasks_per_step=1, group_size=2)

    async def go_on(now, metrics):
        return False

    plan = Plan(2, temperature=Control(0.5, lambda t, metrics, done: 0.25))
    start = Progress(temperature=0.5)
    asyncio.run(train(itertools.cycle(TASKS), rollouts, Told(TinyLM(), 1.0), grpo(), FakeTracker(), plan, start, go_on))
    assert [temperature for temperature, _ in told] == [0.5, 0.25] and [list(rates) for _, rates in told] == [["0/x"], ["1/y"]]


def graded(*statuses):
    infos = [TrajectoryInfo("t", s, 0.0, {}, 1, 1, 0, error=f"cause {i}" if s == "failed" else "") for i, s in enumerate(statuses)]
    return [GroupRef("g", tuple(infos), [], 1)]


def test_a_run_stops_with_the_first_causes_when_too_many_trajectories_fail():
    groups = graded("failed", "failed", "failed", "failed", "completed")
    with pytest.raises(RewardError, match=r"4 of 5 .*max_failed = 0.5.*\n  - cause 0\n  - cause 1\n  - cause 2$"):
        check_failures(groups, 0.5)


def test_causes_that_differ_in_their_answer_alone_are_told_once():
    errors = ["raised A; on task 'x', answer 'p'", "raised A; on task 'y', answer 'q'", "raised B; on task 'x', answer 'p'"]
    groups = graded(*["failed"] * 3)
    told = [replace(group, trajectories=tuple(replace(t, error=errors.pop(0)) for t in group.trajectories)) for group in groups]
    with pytest.raises(RewardError, match=r"causes:\n  - raised A; on task 'x', answer 'p'\n  - raised B; on task 'x', answer 'p'$"):
        check_failures(told, 0.5)


def test_a_few_failures_are_borne():
    check_failures(graded("failed", "completed", "truncated"), 0.5)
    check_failures(graded("completed"), 0.0)


def test_a_step_without_a_single_graded_trajectory_stops_the_run_whatever_the_limit():
    with pytest.raises(RewardError, match="1 of 1"):
        check_failures(graded("failed"), 1.0)
