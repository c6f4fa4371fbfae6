"""Held-out evaluation: sample the policy, grade, and summarise with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlft.config import EvalConfig, SamplingConfig
from rlft.errors import ConfigError
from rlft.evaluate import summarize
from rlft.loop import check_failures
from rlft.types import Task, TrajectoryInfo

if TYPE_CHECKING:
    from rlft.actors.rollout_worker import Sampled
    from rlft.actors.rollouts import Rollouts


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation and what was said."""

    summary: dict[str, float]
    sampled: Sequence[Sampled]


async def evaluate_policy(rollouts: Rollouts, tasks: Sequence[Task], config: EvalConfig, max_failed: float) -> Evaluation:
    """`config.samples` trajectories of every task with its own sampling options, and one greedy pass if asked for.

    The sampling seeds are always the same: evaluations before and after differ in the policy only.
    Raises RewardError when more than the share `max_failed` could not be graded.
    """
    sampled = await rollouts.evaluate(tasks, config, config.samples, "eval")
    check_failures(sampled, max_failed)
    summary = summarize(_values(sampled, config.metric), config.pass_k, config.threshold)
    if config.greedy:
        greedy = SamplingConfig(temperature=0.0, max_tokens=config.max_tokens, stop=config.stop)
        answers = await rollouts.evaluate(tasks, greedy, 1, "greedy")
        summary["greedy"] = summarize(_values(answers, config.metric), (), config.threshold)["mean"]
    return Evaluation(summary, sampled)


def _values(sampled: Sequence[Sampled], metric: str) -> dict[str, list[float | None]]:
    return {s.task.id: [_value(trajectory, metric) for trajectory in s.trajectories] for s in sampled}


def _value(trajectory: TrajectoryInfo, metric: str) -> float | None:
    """The reward, or the part of it that `metric` names; None where the trajectory could not be graded."""
    if trajectory.status == "failed":
        return None
    if metric and metric not in trajectory.parts:
        raise ConfigError(f"eval.metric {metric!r}: no such reward part; there are {sorted(trajectory.parts)}")
    return trajectory.parts[metric] if metric else trajectory.outcome
