"""Numbers that move with the run: coefficients and the sampling temperature.

Each is a pure function of the current value and the last step's metrics, so a resumed run needs the value alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from rlft.algorithms.base import Control
from rlft.errors import ConfigError

Shape = Literal["linear", "cosine"]

MAX_ERROR = 0.2


def adaptive(start: float, target: float, horizon: float, metric: str = "kl/ref") -> Control:
    """value *= 1 + clip(metric / target - 1, -0.2, 0.2) / horizon: a coefficient that moves until the metric is at its target
    (arXiv:1909.08593; the idea is PPO's, arXiv:1707.06347).

    Once a step. The paper's gain of 0.1 is a horizon of 10; its authors' code counts episodes instead, n / 10000 a step
    of n, which here is a horizon of 10000 / n. A step without the metric, or with one that is not finite, leaves the value.

    Args:
        start: > 0: from 0 nothing would move.
        target: > 0, in the metric's units: nats per token for "kl/ref".
        horizon: >= 1, steps. The value changes by at most a factor e in about 5 * horizon of them.
        metric: what is held at the target; it must fall when the value rises.

    Raises:
        ConfigError: a number out of its range.
    """
    _check(start > 0, f"algorithm.kl_coef: expected more than 0 with kl_target, got {start}")
    _check(target > 0, f"algorithm.kl_target: expected more than 0, got {target}")
    _check(horizon >= 1, f"algorithm.kl_horizon: expected at least 1, got {horizon}")

    def following(value: float, metrics: Mapping[str, float], done: int) -> float:
        measured = metrics.get(metric)
        if measured is None or not math.isfinite(measured):
            return value
        error = min(max(measured / target - 1, -MAX_ERROR), MAX_ERROR)
        return value * (1 + error / horizon)

    return Control(start, following)


def scheduled(start: float, final: float, steps: int, shape: Shape = "linear") -> Control:
    """From start in the first step to final after `steps` steps, and final from then on; by the count of steps alone.

    "cosine" is half a period of it: slow at both ends. A coefficient that grows explores first (GRPO-D).

    Raises:
        ConfigError: start = final, which is no schedule; fewer than 1 step; an unknown shape.
    """
    _check(shape in get_args(Shape), f"algorithm.kl_schedule: expected one of {', '.join(get_args(Shape))}, got {shape!r}")
    _check(steps >= 1, f"algorithm.kl_steps: expected at least 1, got {steps}")
    _check(start != final, f"algorithm.kl_final: expected another value than the start, got {final}")

    def following(value: float, metrics: Mapping[str, float], done: int) -> float:
        way = min(done / steps, 1.0)
        if shape == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return start + (final - start) * way

    return Control(start, following)


def temperature_toward(temperature: float, entropy: float | None, target: float, gain: float, low: float, high: float) -> float:
    """The next step's sampling temperature: log T moves by gain * clip(1 - entropy / target, -1, 1), T stays in [low, high].

    So the entropy of what is sampled comes to the target: about 0.3 keeps exploration and exploitation in balance
    (arXiv:2506.13284, which chooses one temperature per stage by it).

    Args:
        entropy: mean per token, in nats, of the distribution *at this temperature*. None, or one that is
            not finite, leaves the temperature.
        target: > 0, nats.
        gain: > 0, the largest step of log T. Small ones converge: the entropy's slope over log T times gain / target
            must stay below 2, and below 1 for an approach from one side.
    """
    if entropy is None or not math.isfinite(entropy):
        return temperature
    error = min(max(1 - entropy / target, -1.0), 1.0)
    return min(max(temperature * math.exp(gain * error), low), high)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
