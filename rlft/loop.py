"""The loop. Read this first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlft.actors.deadline import watched
from rlft.algorithms.base import Algorithm, Control
from rlft.data.ledger import Ledger, Right
from rlft.errors import RewardError
from rlft.report.metrics import Stopwatch, rollout_metrics, spans
from rlft.rewards.grader import ON
from rlft.types import GroupRef, Sampled, Setting, Task

if TYPE_CHECKING:
    from rlft.actors.learner import Learner
    from rlft.actors.rollouts import Rollouts, StepGroups
    from rlft.report.tracking import Tracker


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two steps: what a checkpoint keeps of the loop."""

    step: int = 0  # of the whole run
    stage_step: int = 0  # of this stage
    num_drawn: int = 0  # tasks drawn since the loop began
    temperature: float = 1.0  # of the next step's sampling
    controls: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a stage's loop does besides learning."""

    steps: int  # of the stage
    max_failed: float = 0.1  # share of a step that may stay without a verdict
    ledger: Ledger = field(default_factory=Ledger)
    right: Right = Right()  # what the ledger counts
    controls: Mapping[str, Control] = field(default_factory=dict)  # the algorithm's, by stream
    temperature: Control | None = None  # None: it stays


AfterStep = Callable[[Progress, Mapping[str, Any]], Awaitable[bool]]  # with the step's metrics; whether the stage is over


async def train(
    tasks: Iterator[Task],
    rollouts: Rollouts,
    learner: Learner,
    algorithm: Algorithm,
    tracker: Tracker,
    plan: Plan,
    start: Progress,
    after_step: AfterStep,
) -> None:
    """One step: roll out and grade, update, publish weights. The same loop drives Ray actors and fakes."""
    now = start
    with tracker.phase("first publish of weights"):
        published = await rollouts.load_weights(learner, version=now.step)
    while now.stage_step < plan.steps:
        watch = Stopwatch()
        with watch.span("collect"):
            collected = await collect(tasks, rollouts, tracker, now)
        everything = collected.groups + collected.dropped
        check_failures(everything, plan.max_failed)
        plan.ledger.update(now.step + 1, everything, plan.right)
        trained = [group for group in collected.groups if group.num_tokens]
        setting = Setting(collected.temperature, now.controls, plan.ledger.rates(trained))
        with watch.span("update"), tracker.phase(f"update {now.step + 1}", tell=False):
            learned = await learner.update(trained, algorithm, setting) if trained else {}
        with watch.span("publish"), tracker.phase(f"publish {now.step + 1}", tell=False):
            published |= await rollouts.load_weights(learner, version=now.step + 1)
        watch.split("collect", collected.seconds)  # what the workers computed; the rest of the span is transport
        watch.split("update", spans(learned))
        rolled_out = rollout_metrics(everything, now.step, plan.right.metric, plan.right.threshold)
        rolled_out |= {"rollout/dropped": len(collected.dropped)}
        metrics = {**rolled_out, **learned, **published, **moving(setting, plan), **watch.metrics()}
        now = following(now, plan, metrics, collected.num_drawn)
        tracker.log(now.step, metrics, collected.examples)
        if await after_step(now, metrics):
            break


async def collect(tasks: Iterator[Task], rollouts: Rollouts, tracker: Tracker, now: Progress) -> StepGroups:
    """The groups of the next step; meanwhile it is shown how many answers there are, and what holds them up."""
    with tracker.phase(f"rollouts {now.step + 1}", tell=False) as phase:

        async def look() -> None:
            seen = await rollouts.look("collect")
            phase.count(seen.tally.done, 0, "answers")
            phase.explain(seen.held_up)

        return await watched(rollouts.collect(tasks, now.temperature), look)


def following(now: Progress, plan: Plan, metrics: Mapping[str, Any], num_drawn: int) -> Progress:
    """Where the run stands after a step with these metrics."""
    done = now.stage_step + 1
    temperature = plan.temperature.next(now.temperature, metrics, done) if plan.temperature else now.temperature
    controls = {name: control.next(now.controls[name], metrics, done) for name, control in plan.controls.items()}
    return Progress(now.step + 1, done, num_drawn, temperature, controls)


def moving(setting: Setting, plan: Plan) -> dict[str, float]:
    """The step's values of what moves with the run."""
    values = {f"control/{name}": value for name, value in setting.controls.items()}
    return values | ({"control/temperature": setting.temperature} if plan.temperature else {})


async def learn(
    batches: Iterator[Sequence[GroupRef]],
    learner: Learner,
    algorithm: Algorithm,
    tracker: Tracker,
    steps: int,
    after_step: Callable[[int], Awaitable[None]],
) -> None:
    """Supervised steps: the same learner on rows that need no rollout."""
    for step in range(1, steps + 1):
        watch = Stopwatch()
        with watch.span("data"):
            groups = next(batches)
        with watch.span("update"), tracker.phase(f"update {step}", tell=False):
            learned = await learner.update(groups, algorithm)
        watch.split("update", spans(learned))
        tracker.log(step, {**learned, **watch.metrics()})
        await after_step(step)


def check_failures(groups: Sequence[GroupRef | Sampled], max_failed: float) -> None:
    """Stop a run in which too many trajectories of a step or an evaluation could not be graded.

    A number that stands in for a verdict (`on_error`) is not a grade either.

    Raises:
        RewardError: more than the share `max_failed` failed, or all did, with the first three causes.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    failed = [t for t in trajectories if t.status == "failed" or t.ungraded]
    if failed and (len(failed) > max_failed * len(trajectories) or len(failed) == len(trajectories)):
        causes: dict[str, str] = {}  # each with the first answer on which it arose
        for trajectory in failed:
            causes.setdefault(trajectory.error.partition(ON)[0], trajectory.error)
        listed = "".join(f"\n  - {cause}" for cause in list(causes.values())[:3])
        raise RewardError(
            f"{len(failed)} of {len(trajectories)} trajectories could not be graded "
            f"(reward_pool.max_failed = {max_failed:g}); the first causes:{listed}"
        )
