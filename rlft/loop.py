"""The loop. Read this first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rlft.algorithms.base import Algorithm
from rlft.errors import RewardError
from rlft.metrics import Stopwatch, rollout_metrics, spans
from rlft.types import GroupRef, Task

if TYPE_CHECKING:
    from rlft.actors.learner import Learner
    from rlft.actors.rollout_worker import Sampled
    from rlft.actors.rollouts import Rollouts
    from rlft.tracking import Tracker

AfterStep = Callable[[int], Awaitable[None]]


async def train(
    tasks: Iterator[Task],
    rollouts: Rollouts,
    learner: Learner,
    algorithm: Algorithm,
    tracker: Tracker,
    steps: int,
    max_failed: float,
    after_step: AfterStep,
) -> None:
    """One step: roll out and grade, update, publish weights. The same loop drives Ray actors and fakes."""
    published = await rollouts.load_weights(learner, version=0)
    for step in range(1, steps + 1):
        watch = Stopwatch()
        with watch.span("collect"):
            collected = await rollouts.collect(tasks)
        everything = collected.groups + collected.dropped
        check_failures(everything, max_failed)
        trained = [group for group in collected.groups if group.num_tokens]
        with watch.span("update"):
            learned = await learner.update(trained, algorithm) if trained else {}
        with watch.span("publish"):
            published |= await rollouts.load_weights(learner, version=step)
        watch.split("collect", collected.seconds)  # what the workers computed; the rest of the span is transport
        watch.split("update", spans(learned))
        rolled_out = rollout_metrics(everything, version=step - 1) | {"rollout/dropped": len(collected.dropped)}
        tracker.log(step, {**rolled_out, **learned, **published, **watch.metrics()})
        await after_step(step)


async def learn(
    batches: Iterator[Sequence[GroupRef]], learner: Learner, algorithm: Algorithm, tracker: Tracker, steps: int, after_step: AfterStep
) -> None:
    """Supervised steps: the same learner on rows that need no rollout."""
    for step in range(1, steps + 1):
        watch = Stopwatch()
        with watch.span("data"):
            groups = next(batches)
        with watch.span("update"):
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
        causes = list(dict.fromkeys(t.error for t in failed))[:3]
        listed = "".join(f"\n  - {cause}" for cause in causes)
        raise RewardError(
            f"{len(failed)} of {len(trajectories)} trajectories could not be graded "
            f"(reward_pool.max_failed = {max_failed:g}); the first causes:{listed}"
        )
