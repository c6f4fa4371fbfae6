"""Held-out evaluation: sample the policy, grade, and tell what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlft.config import EvalConfig, SamplingConfig
from rlft.loop import check_failures
from rlft.report.evaluation import Evaluation, attempts, summarize, values_of
from rlft.types import Task

if TYPE_CHECKING:
    from rlft.actors.rollouts import Rollouts


async def evaluate_policy(rollouts: Rollouts, tasks: Sequence[Task], config: EvalConfig, max_failed: float) -> Evaluation:
    """`config.samples` trajectories of every task with its own sampling options, and one greedy pass if asked for.

    The sampling seeds are always the same: evaluations before and after differ in the policy only.
    Raises RewardError when more than the share `max_failed` could not be graded.
    """
    sampled = await rollouts.evaluate(tasks, config, config.samples, "eval")
    check_failures(sampled, max_failed)
    summary = summarize(values_of(sampled, config.metric), config.pass_k, config.threshold)
    summary |= attempts("attempt", sampled, config)
    if config.greedy:
        greedy = SamplingConfig(temperature=0.0, max_tokens=config.max_tokens, stop=config.stop)
        answers = await rollouts.evaluate(tasks, greedy, 1, "greedy")
        summary["greedy"] = summarize(values_of(answers, config.metric), (), config.threshold)["mean"]
        summary |= attempts("attempt_greedy", answers, config)
    return Evaluation(summary, sampled)
