"""What policy-gradient methods share: KL, entropy, importance weights and filters around advantages and a surrogate loss.

Axes: B rows, T tokens. A method is an estimator of advantages and a surrogate; everything in
`Shared` applies to each of them in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

from rlft.algorithms.base import AdvantageFn, Aggregation, Algorithm, Control, LossFn, Need, Reduce, Signal
from rlft.algorithms.controllers import Shape, adaptive, scheduled
from rlft.algorithms.corrections import Level, Mode, importance_weights
from rlft.algorithms.kl import ESTIMATORS, Form, k3, penalty
from rlft.algorithms.losses import dual_clip
from rlft.algorithms.masking import masked
from rlft.algorithms.ratios import beyond, bounded_exp
from rlft.errors import ConfigError
from rlft.types import Batch, Unit

Place = Literal["loss", "reward"]
Overlong = Literal["keep", "filter"]
STREAMS = (
    *("old_logprobs", "ref_logprobs", "rollout_logprobs", "values", "advantages", "returns"),
    *("entropy", "is_weights", "ce_weights", "kl_coef"),
)


class Shared(TypedDict, total=False):
    """Options of every policy-gradient method; the defaults stand in `DEFAULTS`, or with the method.

    aggregation: how tokens are weighed, see `masking.loss_weights`.
    max_length: tokens per trajectory for aggregation "constant".
    overlong: "filter" takes truncated trajectories out of the loss and its denominators (DAPO);
        they still count in their group's baseline, which says how hard the task is.
    kl_coef: weight of the KL to the reference policy; 0 needs no reference.
    kl: form of it, see `kl.py`.
    kl_in: "loss" adds kl_coef * KL to every token's loss. "reward" subtracts it from the token's
        reward, measured at the step's start and *before* any baseline, so it is centered with the reward.
    kl_turns: factors of kl_coef by turn; the last holds for all later turns.
    kl_target, kl_horizon: adapt kl_coef so that "kl/ref" comes to the target, `controllers.adaptive`.
    kl_final, kl_steps, kl_schedule: move kl_coef to `kl_final` over `kl_steps` steps, `controllers.scheduled`.
    entropy_coef: bonus per token and nat of entropy.
    is_cap: multiply the surrogate, not the KL, with importance weights engine -> learner bounded
        at this value; None leaves them out.
    is_level, is_mode, is_floor: see `corrections.importance_weights`.
    dual_clip: bound on the ratio where the advantage is negative, see `losses.dual_clip`; None for none. For surrogates that
        are a ratio times the advantage.
    """

    aggregation: Aggregation
    max_length: int | None
    overlong: Overlong
    kl_coef: float
    kl: Form
    kl_in: Place
    kl_turns: Sequence[float]
    kl_target: float | None
    kl_horizon: int
    kl_final: float | None
    kl_steps: int
    kl_schedule: Shape
    entropy_coef: float
    is_cap: float | None
    is_level: Level
    is_mode: Mode
    is_floor: float
    dual_clip: float | None


DEFAULTS: Shared = {
    "aggregation": "token",
    "max_length": None,
    "overlong": "keep",
    "kl_coef": 0.0,
    "kl": "k3",
    "kl_in": "loss",
    "kl_turns": (),
    "kl_target": None,
    "kl_horizon": 10,
    "kl_final": None,
    "kl_steps": 100,
    "kl_schedule": "linear",
    "entropy_coef": 0.0,
    "is_cap": None,
    "is_level": "token",
    "is_mode": "truncate",
    "is_floor": 0.0,
    "dual_clip": None,
}


CHOICES = {
    "aggregation": Aggregation,
    "overlong": Overlong,
    "kl": Form,
    "kl_in": Place,
    "kl_schedule": Shape,
    "is_level": Level,
    "is_mode": Mode,
}
LEAST = {"max_length": 1, "kl_coef": 0, "kl_target": 0, "kl_horizon": 1, "kl_final": 0, "kl_steps": 1, "entropy_coef": None, "is_floor": 0}


def policy_gradient(
    name: str,
    advantages: AdvantageFn,
    surrogate: LossFn,
    shared: Shared,
    defaults: Shared | None = None,
    *,
    needs: Iterable[Need] = ("old_logprobs",),
    unit: Unit = "row",
    tags: tuple[str, ...] = (),
    parts: tuple[str, ...] = (),
    value_loss: LossFn | None = None,
    min_group: int = 2,
    may_truncate: bool = False,
    estimator_needs: Iterable[Need] = (),
    signal: Signal | None = None,
    ratio: bool = True,
    by_outcome: bool = False,
) -> Algorithm:
    """A method from its estimator and its surrogate.

    Args:
        advantages: fills `advantages` from `rewards`, which hold the KL penalty already where it belongs there.
        surrogate: (logprobs, batch) -> (loss [B, T], metrics); every stream it sees is 0 off the loss mask.
        shared: what the user chose.
        defaults: what the method chooses otherwise than `DEFAULTS`.
        needs, unit, tags, parts, value_loss: see `Algorithm`.
        min_group: see `Algorithm`; 2 unless the baseline comes from elsewhere than the group.
        may_truncate: see `Algorithm`; a KL and importance weights end it.
        estimator_needs: those of "old_logprobs" and "ref_logprobs" that `advantages` reads by itself.
        signal: the stream without which `surrogate` has no gradient, see `Algorithm`. Terms that stand beside the surrogate
            (KL in the loss, entropy, a critic) have one without it, so with them nothing is skipped.
        by_outcome: see `Algorithm`.
        ratio: whether the surrogate is a ratio times the advantage; `dual_clip` is for these alone.

    Raises:
        ConfigError: a value out of range, or an option that has no effect with the others.
    """
    standard: Shared = {**DEFAULTS, **(defaults or {})}
    check_options(shared, standard)
    o = SimpleNamespace(**{**standard, **shared})
    if o.dual_clip is not None and not ratio:
        raise ConfigError(f"algorithm.dual_clip bounds a ratio times an advantage, and the loss of {name!r} is none; remove it")
    needed, late = _needs(o, needs, estimator_needs)
    beside = o.entropy_coef or (o.kl_coef and o.kl_in == "loss") or value_loss is not None
    return Algorithm(
        name,
        _around_advantages(advantages, o),
        _around_loss(surrogate, o),
        needed,
        o.aggregation,
        o.max_length,
        value_loss,
        unit,
        tags,
        parts,
        _controls(o),
        min_group,
        may_truncate and not o.kl_coef and o.is_cap is None,
        late,
        None if beside else signal,
        by_outcome,
    )


def without_noise(batch: Batch) -> Batch:
    """The batch with every stream 0, and without gradient, off the loss mask."""
    present = {name: x for name in STREAMS if (x := getattr(batch, name)) is not None}
    return replace(batch, **{name: masked(x, batch.loss_mask) for name, x in present.items()})


def _needs(o: Any, needs: Iterable[Need], estimator_needs: Iterable[Need]) -> tuple[frozenset[Need], frozenset[Need]]:
    """Return what a method needs with these options, and which of that its loss alone reads."""
    needed: set[Need] = {*needs}
    early: set[Need] = {*estimator_needs}
    if o.kl_coef:
        needed |= {"old_logprobs", "ref_logprobs"}
    if o.is_cap is not None:
        needed |= {"old_logprobs"}
        early |= {"old_logprobs"}
    if o.kl_coef and o.kl_in == "reward":
        early |= {"old_logprobs", "ref_logprobs"}
    scored: set[Need] = {"old_logprobs", "ref_logprobs"}
    return frozenset(needed), frozenset((needed & scored) - early)


def _around_advantages(advantages: AdvantageFn, o: Any) -> AdvantageFn:
    def fill(batch: Batch, reduce: Reduce) -> Batch:
        given = without_noise(batch)
        if o.kl_coef:
            given = replace(given, kl_coef=masked(_kl_weights(given, o), given.loss_mask))
        rewards = given.rewards
        if o.kl_coef and o.kl_in == "reward":
            rewards = rewards - _filled(given.kl_coef) * ESTIMATORS[o.kl](_filled(given.old_logprobs), _filled(given.ref_logprobs))
        if o.overlong == "filter":
            given = without_noise(replace(given, loss_mask=given.loss_mask & ~batch.truncated[:, None]))
        filled = replace(advantages(replace(given, rewards=rewards), reduce), rewards=batch.rewards)
        if o.is_cap is not None:
            old, mask = _filled(given.old_logprobs), given.loss_mask
            weights = importance_weights(old, given.rollout_logprobs, mask, given.traj_ids, o.is_level, o.is_mode, o.is_cap, o.is_floor)
            filled = replace(filled, is_weights=weights)
        return without_noise(filled)

    return fill


def _around_loss(surrogate: LossFn, o: Any) -> LossFn:
    def loss(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, batch = masked(logprobs, batch.loss_mask), without_noise(batch)
        per_token, metrics = surrogate(logprobs, batch)
        now = logprobs.detach()
        if o.dual_clip is not None:
            per_token, cut = dual_clip(per_token, _filled(batch.advantages), o.dual_clip)
            metrics = {**metrics, "ratio/dual_clipped": cut.float()}
        if batch.old_logprobs is not None:
            # The samples are the old policy's: KL(old || new).
            moved = now - batch.old_logprobs
            ratios = {"ratio/mean": bounded_exp(moved), "ratio/bounded": beyond(moved)}
            metrics = {**ratios, "kl/old": k3(batch.old_logprobs, now), **metrics}
        if o.is_cap is not None:
            per_token = per_token * masked(batch.is_weights, batch.loss_mask)
        if o.kl_coef:
            ref_logprobs, weights = _filled(batch.ref_logprobs), masked(batch.kl_coef, batch.loss_mask)
            estimate = k3(now, ref_logprobs)
            metrics |= {"kl/ref": estimate, "kl/penalty": weights * estimate, "kl/bounded": beyond(ref_logprobs - now)}
            if o.kl_in == "loss":
                per_token = per_token + weights * penalty(o.kl, logprobs, ref_logprobs, _filled(batch.old_logprobs))
        if o.entropy_coef:
            per_token = per_token - o.entropy_coef * _filled(batch.entropy)
        return per_token, metrics

    return loss


def _kl_weights(batch: Batch, o: Any) -> Tensor:
    """Weight of every token's KL: what a control gave this step, or the fixed one, times its turn's factor."""
    weights = torch.full_like(batch.rewards, o.kl_coef) if batch.kl_coef is None else batch.kl_coef
    if not o.kl_turns:
        return weights
    factors = weights.new_tensor(list(o.kl_turns))
    return weights * factors[batch.turn_ids.clamp(0, len(o.kl_turns) - 1)]


def _controls(o: Any) -> dict[str, Control]:
    if o.kl_target is not None:
        return {"kl_coef": adaptive(o.kl_coef, o.kl_target, o.kl_horizon)}
    if o.kl_final is not None:
        return {"kl_coef": scheduled(o.kl_coef, o.kl_final, o.kl_steps, o.kl_schedule)}
    return {}


def _filled(x: Tensor | None) -> Tensor:
    """A stream that has to be there. Raises ValueError."""
    if x is None:
        raise ValueError("this stream of the batch is not filled: name it in Algorithm.needs, or fill it in Algorithm.advantages")
    return x


def check_options(shared: Shared, standard: Shared) -> None:
    """Refuse values out of range, and options that cannot have an effect beside the others. Raises ConfigError."""
    if unknown := sorted(set(shared) - set(DEFAULTS)):
        raise ConfigError(f"algorithm: unknown option {unknown[0]!r}; valid: {', '.join(DEFAULTS)}")
    o = SimpleNamespace(**{**standard, **shared})
    for option, valid in CHOICES.items():
        expect(getattr(o, option) in get_args(valid), option, f"one of {', '.join(get_args(valid))}", getattr(o, option))
    for option, least in LEAST.items():
        value = getattr(o, option)
        expect(value is None or is_number(value, least), option, "a number" if least is None else f"at least {least}", value)
    expect(o.is_cap is None or (is_number(o.is_cap) and o.is_cap > o.is_floor), "is_cap", f"more than {o.is_floor:g}", o.is_cap)
    expect(o.dual_clip is None or (is_number(o.dual_clip, 1) and o.dual_clip > 1), "dual_clip", "more than 1", o.dual_clip)
    expect(all(is_number(f, 0) for f in o.kl_turns), "kl_turns", "factors of at least 0", o.kl_turns)
    expect(o.kl_in == "loss" or o.kl in ESTIMATORS, "kl", f"one of {', '.join(ESTIMATORS)} with kl_in = 'reward'", o.kl)
    expect(o.kl_target is None or o.kl_final is None, "kl_final", "nothing beside kl_target: kl_coef follows one of them", o.kl_final)
    rules = [
        (("kl", "kl_in", "kl_turns", "kl_target", "kl_final"), o.kl_coef > 0, "kl_coef > 0"),
        (("kl_horizon",), o.kl_target is not None, "kl_target"),
        (("kl_steps", "kl_schedule"), o.kl_final is not None, "kl_final"),
        (("is_level", "is_mode", "is_floor"), o.is_cap is not None, "is_cap"),
        (("is_floor",), o.is_mode == "mask", "is_mode = 'mask'"),
        (("max_length",), o.aggregation == "constant", f"aggregation = 'constant', got {o.aggregation!r}"),
    ]
    for options, applies, condition in rules:
        for option in options:
            if not applies and option in shared and shared[option] != standard[option]:
                raise ConfigError(f"algorithm.{option} needs {condition}")
    if o.aggregation == "constant" and o.max_length is None:
        raise ConfigError("algorithm.max_length: missing; 'constant' divides by it: set it to rollout.max_tokens")


def is_number(value: Any, least: float | None = None) -> bool:
    """Whether it is a number, and not below `least`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (least is None or value >= least)


def expect(holds: bool, option: str, expected: str, got: Any) -> None:
    """Raise ConfigError unless an option's value is as expected."""
    if not holds:
        raise ConfigError(f"algorithm.{option}: expected {expected}, got {got!r}")
