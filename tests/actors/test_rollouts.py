import asyncio
import itertools
from types import SimpleNamespace

import pytest

from rlft.actors.deadline import within
from rlft.actors.rollout_worker import Collected, Published
from rlft.actors.rollouts import Rollouts
from rlft.actors.weights.probe import Probe
from rlft.algorithms.grpo import grpo
from rlft.config import validate
from rlft.errors import ConfigError, PublishError, RewardError, StallError
from rlft.loop import Plan, Progress, train
from rlft.testing.fakes import FakeTracker
from rlft.types import GroupRef, Task, TrajectoryInfo

PROBE = Probe([[1, 2, 3]], "float32")


def info(outcome, status="completed", error=""):
    return TrajectoryInfo("t", status, outcome, {}, 1, 1, 0, error=error)


class Worker:
    """Answers the calls that Rollouts makes of an actor; `earn(n)` gives the trajectories of the n-th group."""

    def __init__(self, earn):
        self.full = ()  # names of files that there is no room for
        self.earn, self.asked, self.temperatures, self.steps = earn, [], [], []
        self.collect = SimpleNamespace(remote=self._collect)
        self.calls = []  # of storing
        self.flush, self.merge = SimpleNamespace(remote=self._flush), SimpleNamespace(remote=self._merge)

    async def _flush(self):
        self.calls.append("flush")

    async def _merge(self, name):
        if name in self.full:
            raise OSError("no space left on device")
        self.calls.append(name)

    async def _collect(self, tasks, step, temperature):
        self.asked.append(len(tasks))
        self.temperatures.append(temperature)
        self.steps.append(step)
        numbers = [int(name.partition("/")[0]) for name, _ in tasks]
        groups = [GroupRef(str(n), tuple(self.earn(n)), rows=f"rows {n}", num_tokens=4) for n in numbers]
        return Collected(tuple(groups), {"rollout": 1.0, "reward": 0.5, "store": 0.0})


class StillLearner:
    def __init__(self):
        self.trained = []

    async def update(self, groups, algorithm, setting):
        self.trained.append([group.group_id for group in groups])
        return {}

    async def publish(self, workers, version, probe):
        return [[-1.0, -2.0]], [Published([[-1.0, -2.0]], 2, 3, 1)]


def make(earn, start=None, tracking=None, **rollout):
    worker = Worker(earn)
    sampling = {"drop_no_signal": True, "max_refills": 2, **rollout}
    table = {"model": "m", "tasks_per_step": 4, "rollout": sampling, "tracking": tracking or {}}
    return worker, Rollouts([worker], validate(table), PROBE, **(start or {}))


def tasks():
    return (Task(str(n), ({"role": "user", "content": "?"},)) for n in itertools.count())


def even_differ(number):
    return [info(0.0), info(float(number % 2 == 0))]


def test_groups_without_signal_are_dropped_and_refilled():
    worker, rollouts = make(even_differ)
    collected = asyncio.run(rollouts.collect(tasks(), 1.0))
    assert worker.asked == [4, 2, 1] and collected.num_drawn == 7  # half of each are dropped, and there are two refills
    assert [g.group_id for g in collected.groups] == ["0", "2", "4", "6"]
    assert [g.group_id for g in collected.dropped] == ["1", "3", "5"] and not any(g.rows for g in collected.dropped)
    assert collected.seconds["rollout"] == 3.0


def test_without_dropping_every_group_is_kept_and_asked_for_once():
    worker, rollouts = make(even_differ, drop_no_signal=False, max_refills=4)
    collected = asyncio.run(rollouts.collect(tasks(), 1.0))
    assert worker.asked == [4] and len(collected.groups) == 4 and collected.dropped == ()


def test_rollouts_run_ahead_by_the_allowed_steps_and_not_past_the_last():
    start = {"steps_done": 6, "steps": 4, "first_number": 100}
    worker, rollouts = make(even_differ, start, drop_no_signal=False, max_refills=4, max_staleness=2)
    collected = []

    async def four_steps():
        stream, started = tasks(), []
        for i in range(4):
            collected.append(await rollouts.collect(stream, i / 10))
            for _ in range(20):
                await asyncio.sleep(0)  # what was just started gets as far as its worker
            started.append(len(worker.asked))
        return started

    assert asyncio.run(four_steps()) == [3, 4, 4, 4] and worker.steps == [7, 8, 9, 10]
    assert [step.temperature for step in collected] == worker.temperatures == [0.0, 0.0, 0.0, 0.1]
    assert [step.num_drawn for step in collected] == [4, 8, 12, 16]
    assert [group.group_id for group in collected[1].groups] == ["104", "105", "106", "107"]


async def go_on(now, metrics):
    return False


def run(earn, max_failed=0.0):
    _, rollouts = make(earn)
    learner, recorder = StillLearner(), FakeTracker()
    asyncio.run(train(tasks(), rollouts, learner, grpo(), recorder, Plan(1, max_failed), Progress(), go_on))
    return learner.trained, recorder.rows[0]


def test_a_step_in_which_no_group_says_anything_trains_on_nothing_and_goes_on():
    trained, row = run(lambda number: [info(1.0), info(1.0)])
    assert trained == [] and row["rollout/dropped"] == 12 and row["reward/mean"] == 1.0 and row["rollout/no_signal"] == 1.0


def test_metrics_count_the_dropped_groups_too():
    trained, row = run(even_differ)
    assert trained == [["0", "2", "4", "6"]]
    assert row["rollout/no_signal"] == pytest.approx(3 / 7) and row["reward/mean"] == pytest.approx(4 / 14)


def test_failures_are_seen_although_their_groups_are_dropped():
    with pytest.raises(RewardError, match="24 of 24 .*\n  - the grader broke"):
        run(lambda number: [info(0.0, "failed", "the grader broke")] * 2, max_failed=0.5)


class MovingLearner:
    """Its own log-probabilities of the probe, and those of each engine, publish by publish."""

    def __init__(self, *publishes):
        self.publishes = iter(publishes)

    async def publish(self, workers, version, probe):
        ours, *theirs = next(self.publishes)
        return [ours], [Published([logprobs], 2, 3, 1) for logprobs in theirs]


def test_a_publish_reports_the_engine_that_is_farthest_and_how_much_was_compared():
    _, rollouts = make(even_differ)
    figures = asyncio.run(rollouts.load_weights(MovingLearner(([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.002])), 0))
    assert figures["publish/mean_diff"] == pytest.approx(1e-3) and figures["publish/max_diff"] == pytest.approx(2e-3)
    assert [figures[f"publish/num_{name}"] for name in ("whole", "columns", "unread")] == [2, 3, 1]


def test_a_publish_to_one_engine_that_computes_something_else_is_refused_by_its_number():
    _, rollouts = make(even_differ)
    with pytest.raises(PublishError, match="rollout worker 1 computes another policy than the learner at version 3"):
        asyncio.run(rollouts.load_weights(MovingLearner(([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.1])), 3))


def test_closing_waits_for_what_is_stored_and_not_for_workers_that_were_never_asked():
    async def never():
        await asyncio.Event().wait()

    def closed(asked):
        worker, rollouts = make(even_differ)
        worker.flush = SimpleNamespace(remote=never)

        async def run():
            if asked:
                await rollouts.collect(tasks(), 1.0)
            await rollouts.close(0.01)

        asyncio.run(run())

    closed(asked=False)
    with pytest.raises(StallError, match=r"rollout workers \(storing\)"):
        closed(asked=True)


def test_a_wait_past_its_deadline_says_who_was_waited_for():
    async def never():
        await asyncio.Event().wait()

    with pytest.raises(StallError, match="rollout workers: no answer within 0 s"):
        asyncio.run(within([never()], 0.01, "rollout workers"))


def test_what_an_actor_raises_arrives_as_it_was_raised():
    from ray.exceptions import RayActorError, RayTaskError

    async def fails(error):
        raise error

    def remote(cause):
        return RayTaskError("f", "a traceback", cause).as_instanceof_cause()

    with pytest.raises(ConfigError, match="^wrong stage$"):
        asyncio.run(within([fails(remote(ConfigError("wrong stage")))], 5, "learner"))
    with pytest.raises(RayTaskError):  # an actor's own timeout is not the deadline of this wait
        asyncio.run(within([fails(remote(TimeoutError("a tool")))], 5, "learner"))
    died = RayActorError(error_msg="The actor died because of an error raised in its creation task\nrlft.errors.ConfigError: wrong stage")
    with pytest.raises(ConfigError, match="^wrong stage$"):
        asyncio.run(within([fails(died)], 5, "learner"))
    with pytest.raises(StallError, match="learner: the actor died"):
        asyncio.run(within([fails(RayActorError(error_msg="node lost"))], 5, "learner"))


def test_what_workers_stored_of_a_step_becomes_one_file_when_all_of_it_is_written():
    worker, rollouts = make(even_differ)

    async def two_steps():
        stream = tasks()
        for _ in range(2):
            await rollouts.collect(stream, 1.0)
        await rollouts.close()

    asyncio.run(two_steps())
    assert [call for call in worker.calls if call != "flush"] == ["step-000001", "step-000002"]
    assert worker.calls[0] == "flush"  # of every worker, before one of them reads what is there


def test_nothing_is_merged_where_nothing_is_stored():
    worker, rollouts = make(even_differ, tracking={"rollouts_every": 0})

    async def one_step():
        await rollouts.collect(tasks(), 1.0)
        await rollouts.close()

    asyncio.run(one_step())
    assert worker.calls == ["flush"]


def test_a_full_disk_stops_the_run_at_the_next_step():
    worker, rollouts = make(even_differ)
    worker.full = ("step-000001",)

    async def on_and_on():
        stream = tasks()
        for _ in range(3):
            await rollouts.collect(stream, 1.0)
            await asyncio.sleep(0)

    with pytest.raises(OSError, match="no space left"):
        asyncio.run(on_and_on())
    assert len(worker.steps) < 9
