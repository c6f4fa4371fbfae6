"""Held-out evaluation: sample the policy, grade, and tell what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlft.actors.deadline import watched
from rlft.config import EvalConfig, SamplingConfig
from rlft.data.disk import write_text
from rlft.errors import RewardError
from rlft.loop import check_failures
from rlft.report.evaluation import Evaluation, attempts, summarize, task_results, values_of
from rlft.report.folder import plain
from rlft.report.screen import Phase
from rlft.types import Sampled, Task

if TYPE_CHECKING:
    from rlft.actors.rollouts import Rollouts


async def evaluate_policy(rollouts: Rollouts, tasks: Sequence[Task], config: EvalConfig, max_failed: float, phase: Phase) -> Evaluation:
    """`config.samples` trajectories of every task with its own sampling options, and one greedy pass if asked for.

    The sampling seeds are always the same: evaluations before and after differ in the policy only.

    Args:
        phase: shows how far it is.

    Raises:
        RewardError: more than the share `max_failed` could not be graded; as soon as that is sure.
    """
    sampled = await _sample(rollouts, tasks, config, config.samples, "eval", max_failed, phase)
    summary = summarize(values_of(sampled, config.metric), config.pass_k, config.threshold)
    summary |= attempts("attempt", sampled, config)
    answers: Sequence[Sampled] = ()
    if config.greedy:
        greedy = SamplingConfig(temperature=0.0, max_tokens=config.max_tokens, stop=config.stop)
        answers = await _sample(rollouts, tasks, greedy, 1, "greedy", max_failed, phase)
        summary["greedy"] = summarize(values_of(answers, config.metric), (), config.threshold)["mean"]
        summary |= attempts("attempt_greedy", answers, config)
    return Evaluation(summary, sampled, answers)


async def _sample(
    rollouts: Rollouts, tasks: Sequence[Task], sampling: SamplingConfig, samples: int, label: str, max_failed: float, phase: Phase
) -> Sequence[Sampled]:
    number, unit = len(tasks) * samples, "samples" if label == "eval" else "greedy samples"
    phase.count(0, number, unit)

    async def look() -> None:
        seen = await rollouts.look("evaluate")
        phase.count(seen.tally.done, number, unit)
        phase.explain(seen.held_up)
        refuse(seen.tally.failed, number, seen.tally.causes, max_failed)

    sampled = await watched(rollouts.evaluate(tasks, sampling, samples, label), look)
    phase.count(number, number, unit)
    check_failures(sampled, max_failed)
    return sampled


def refuse(failed: int, number: int, causes: Sequence[str], max_failed: float) -> None:
    """End an evaluation that cannot succeed any more. Raises RewardError."""
    if failed > max_failed * number:
        listed = "".join(f"\n  - {cause}" for cause in causes)
        raise RewardError(
            f"evaluation: {failed} of {number} samples could not be graded already, and reward_pool.max_failed = {max_failed:g} "
            f"allows {int(max_failed * number)}; the first causes:{listed}"
        )


def store_results(folder: Path, step: int, evaluation: Evaluation, config: EvalConfig) -> None:
    """What every task earned, one line of JSON each, in `folder`."""
    folder.mkdir(exist_ok=True)
    rows = task_results(step, evaluation, config)
    write_text(folder / f"step-{step:06d}.jsonl", "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))
