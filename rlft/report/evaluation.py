"""What an evaluation found: mean and pass@k over tasks, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rlft.config import EvalConfig
from rlft.errors import ConfigError, RewardError
from rlft.report.attempts import attempt_metrics
from rlft.report.intervals import interval
from rlft.types import Sampled, TrajectoryInfo


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation and what was said."""

    summary: dict[str, float]
    sampled: Sequence[Sampled]
    greedy: Sequence[Sampled] = ()


def task_results(step: int, evaluation: Evaluation, config: EvalConfig) -> list[dict[str, Any]]:
    """What each task earned: by sample, their mean, its pass@k, and what the greedy answer earned; null where nothing was graded."""
    values, greedy = values_of(evaluation.sampled, config.metric), values_of(evaluation.greedy, config.metric)
    return [_task_result(step, sampled, values[sampled.task.id], greedy.get(sampled.task.id), config) for sampled in evaluation.sampled]


def _task_result(
    step: int, sampled: Sampled, values: Sequence[float | None], greedy: Sequence[float | None] | None, config: EvalConfig
) -> dict[str, Any]:
    known = [value if value is not None and math.isfinite(value) else None for value in values]
    graded = [value for value in known if value is not None]
    passed = sum(value >= config.threshold for value in graded)
    rates = {f"pass@{k}": pass_at_k(len(graded), passed, k) if len(graded) >= k else None for k in config.pass_k}
    return {
        "step": step,
        "task_id": sampled.task.id,
        "mean": fmean(graded) if graded else None,
        **rates,
        **({} if greedy is None else {"greedy": greedy[0]}),
        "values": known,
        "failed": len(known) - len(graded),
        "truncated": sum(t.status == "truncated" for t in sampled.trajectories),
        "errors": list(dict.fromkeys(t.error for t in sampled.trajectories if t.error)),
    }


def attempts(area: str, sampled: Sequence[Sampled], config: EvalConfig) -> dict[str, float]:
    trajectories = [trajectory for s in sampled for trajectory in s.trajectories]
    return {f"{area}/{name}": value for name, value in attempt_metrics(trajectories, config.metric, config.threshold).items()}


def values_of(sampled: Sequence[Sampled], metric: str) -> dict[str, list[float | None]]:
    return {s.task.id: [_value(trajectory, metric) for trajectory in s.trajectories] for s in sampled}


def _value(trajectory: TrajectoryInfo, metric: str) -> float | None:
    """The reward, or the part of it that `metric` names; None where the trajectory could not be graded."""
    if trajectory.status == "failed":
        return None
    if metric and metric not in trajectory.parts:
        raise ConfigError(f"eval.metric {metric!r}: no such reward part; there are {sorted(trajectory.parts)}")
    return trajectory.parts[metric] if metric else trajectory.outcome


def summarize(values: Mapping[str, Sequence[float | None]], pass_k: Sequence[int] = (1,), threshold: float = 1.0) -> dict[str, float]:
    """Statistics of sampled values per task id; None or NaN marks a sample that could not be graded.

    Failed samples are left out and counted in `num_failed`. A task that they leave with no value, or with
    fewer than k, leaves that one estimate and is counted in `num_incomplete`.

    Args:
        values: every task's samples, e.g. their rewards.
        pass_k: the k of each pass@k; every task must have been sampled at least that often.
        threshold: value from which a sample passes.

    Returns:
        `mean` with `low`, `high`; for each k `pass@k` with `pass@k_low`, `pass@k_high`;
        `num_tasks`, `num_samples` (graded ones), `num_failed`, `num_incomplete`.

    Raises:
        ValueError: a task with fewer samples than k, or k < 1.
        RewardError: no sample, or no task with k of them, was graded.
    """
    for k in pass_k:
        short = [task for task, samples in values.items() if len(samples) < k]
        if k < 1 or short:
            raise ValueError(f"pass@{k}: expected k >= 1 and k samples of every task; too few for {short[:3]}; sample more or lower pass_k")
    graded = {task: [v for v in samples if v is not None and not math.isnan(v)] for task, samples in values.items()}
    num_samples = sum(map(len, graded.values()))
    bounded = all(0 <= v <= 1 for samples in graded.values() for v in samples)
    summary = _estimate("mean", ("low", "high"), [fmean(samples) for samples in graded.values() if samples], bounded)
    for k in pass_k:
        rates = [pass_at_k(len(samples), sum(v >= threshold for v in samples), k) for samples in graded.values() if len(samples) >= k]
        summary |= _estimate(f"pass@{k}", (f"pass@{k}_low", f"pass@{k}_high"), rates, True)
    return summary | {
        "num_tasks": len(values),
        "num_samples": num_samples,
        "num_failed": sum(map(len, values.values())) - num_samples,
        "num_incomplete": sum(len(samples) < max([1, *pass_k]) for samples in graded.values()),
    }


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold one of the c passing: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that one of k fresh samples passes (arXiv:2107.03374, eq. 1). Exact integers.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k: expected 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _estimate(name: str, ends: tuple[str, str], task_values: Sequence[float], bounded: bool) -> dict[str, float]:
    if not task_values:
        raise RewardError(f"evaluation: no task has enough graded samples for {name!r}; look at the errors of the reward")
    return {name: fmean(task_values), **dict(zip(ends, interval(task_values, bounded), strict=True))}
