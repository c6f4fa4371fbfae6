"""An evaluation shows how far it is, and ends as soon as it cannot succeed."""

import asyncio
import io
import json

import pytest
from rich.console import Console

from rlft.actors import deadline
from rlft.actors.deadline import answered, together, watched
from rlft.actors.rollout_worker import Tally
from rlft.actors.rollouts import Look
from rlft.config import EvalConfig
from rlft.errors import RewardError
from rlft.report.screen import Screen
from rlft.runs.evaluation import evaluate_policy, store_results
from rlft.types import Sampled, Task, TrajectoryInfo

TASKS = [Task(str(i), ()) for i in range(50)]


class Rollouts:
    """Never ends by itself while it is asked how far it is; every look finds more samples without a verdict."""

    def __init__(self, failed_by_look, then):
        self.failed, self.then, self.looks, self.ended = failed_by_look, then, 0, asyncio.Event()

    async def evaluate(self, tasks, sampling, samples, label):
        await self.ended.wait()
        infos = [TrajectoryInfo(task.id, "completed", 1.0, {}, 1, 1, 0) for task in tasks]
        return [Sampled(task, (info,) * samples, ()) for task, info in zip(tasks, infos, strict=True)]

    async def look(self, kind):
        self.looks += 1
        if self.looks == len(self.failed):
            self.then(self)
        return Look(Tally(40, self.failed[self.looks - 1], ("out of reach",)), "reward 'slow' hangs")


def evaluated(failed, monkeypatch, then=lambda rollouts: rollouts.ended.set(), max_failed=0.1):
    monkeypatch.setattr(deadline, "LOOK_S", 0.01)
    out = io.StringIO()
    screen = Screen(Console(file=out, width=200))
    rollouts = Rollouts(failed, then)

    async def run():
        with screen.phase("first evaluation") as phase:
            return await evaluate_policy(rollouts, TASKS, EvalConfig(samples=4), max_failed, phase)

    return rollouts, out, asyncio.run(run())


def test_an_evaluation_that_cannot_succeed_any_more_stops_at_once(monkeypatch):
    with pytest.raises(RewardError, match=r"21 of 200 samples could not be graded already, .*= 0.1 allows 20; .*\n  - out of reach"):
        evaluated([3, 20, 21], monkeypatch, then=lambda rollouts: None)


def test_one_that_still_can_goes_on_to_its_end_and_shows_how_far_it_is(monkeypatch):
    rollouts, out, evaluation = evaluated([3, 20], monkeypatch)
    assert rollouts.looks == 2 and evaluation.summary["mean"] == 1.0
    assert "first evaluation: reward 'slow' hangs" in out.getvalue() and "first evaluation: 200 of 200 samples" in out.getvalue()


def test_results_by_task_lie_in_a_file_of_their_step(monkeypatch, tmp_path):
    _, _, evaluation = evaluated([0], monkeypatch)
    store_results(tmp_path / "eval", 20, evaluation, EvalConfig())
    rows = [json.loads(line) for line in (tmp_path / "eval" / "step-000020.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == [task.id for task in TASKS] and rows[0]["values"] == [1.0] * 4


def test_what_a_look_raises_ends_the_work_and_its_result_comes_through_else(monkeypatch):
    monkeypatch.setattr(deadline, "LOOK_S", 0.01)

    async def fail():
        raise KeyError("x")

    async def main():
        never = asyncio.get_running_loop().create_future()
        with pytest.raises(KeyError):
            await watched(never, fail)
        return never.cancelled(), await watched(asyncio.sleep(0, "done"), fail)

    assert asyncio.run(main()) == (True, "done")


def test_only_those_that_answer_at_once_are_heard():
    async def main():
        async def now(value):
            return value

        async def dead():
            raise ValueError("died")

        never = asyncio.get_running_loop().create_future()
        return await answered([now(1), never, dead(), now(2)], 0.05)

    assert sorted(asyncio.run(main())) == [1, 2]


def test_the_first_error_ends_what_goes_on_side_by_side():
    async def main():
        never = asyncio.get_running_loop().create_future()

        async def fail():
            raise ValueError("first")

        with pytest.raises(ValueError, match="first"):
            await together([never, fail()])
        return never.cancelled(), await together([asyncio.sleep(0, 1), asyncio.sleep(0, 2)])

    assert asyncio.run(main()) == (True, [1, 2])
