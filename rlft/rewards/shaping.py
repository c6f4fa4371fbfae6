"""Rewards of groups made from the parts that other rewards gave: length shaping, comparison within the group, combination.

They read `trajectory.parts`; a part must stand before them in the run file. Lengths are sampled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal

from rlft.errors import RewardError
from rlft.rewards.extract import given_json
from rlft.types import Group

EASY_ABOVE = 0.625  # pass rate: AdaCtrl
_TAGS = {"[easy]": "Easy", "[hard]": "Hard"}


def cosine_length(
    group: Group,
    *,
    part: str,
    max_tokens: int,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
    exceeded: float = -1.0,
    threshold: float = 0.5,
) -> list[float]:
    """Half a cosine over the length (arXiv:2502.03373): right answers earn less the longer they are, wrong ones more.

    At length 0 an answer earns `right_short` or `wrong_short`, at `max_tokens` `right_long` or `wrong_long`; an answer
    that reaches `max_tokens` earns `exceeded`. The four ends are ours, of equal size on both sides.

    Args:
        part: reward that says what is right: above `threshold`.
        max_tokens: the longest answer.

    Raises:
        RewardError: `max_tokens` is not positive, or a trajectory has no such part.
    """
    if max_tokens <= 0:
        raise RewardError(f"cosine_length: max_tokens {max_tokens}; expected a positive number")
    earned = []
    for value, tokens in zip(_part(group, part, "cosine_length"), _lengths(group), strict=True):
        at_0, at_max = (right_short, right_long) if value > threshold else (wrong_short, wrong_long)
        earned.append(exceeded if tokens >= max_tokens else at_max + (at_0 - at_max) * (1 + math.cos(math.pi * tokens / max_tokens)) / 2)
    return earned


def relative_length(group: Group, *, part: str, threshold: float = 0.5) -> list[float]:
    """Length reward of Kimi k1.5 (arXiv:2501.12599, sec. 2.3.3): 0.5 - (length - min) / (max - min), of wrong answers at most 0.

    The shortest of the group has 0.5, the longest -0.5; all have 0 where lengths are equal.

    Args:
        part: reward that says what is right: above `threshold`.

    Raises:
        RewardError: a trajectory has no such part.
    """
    values, lengths = _part(group, part, "relative_length"), _lengths(group)
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if shortest == longest:
        return [0.0] * len(lengths)
    scores = [0.5 - (tokens - shortest) / (longest - shortest) for tokens in lengths]
    return [score if value > threshold else min(0.0, score) for value, score in zip(values, scores, strict=True)]


def pass_rate_label(group: Group, *, part: str, threshold: float = 0.5, easy_above: float = EASY_ABOVE) -> list[tuple[float, str]]:
    """How well an answer says beforehand whether its task is easy: its tag against the group's pass rate (AdaCtrl).

    1 if the first 6 characters are the tag "[Easy]" or "[Hard]" that is right, 0 if they are the other one, -1 if neither.

    Args:
        part: reward that says what is right: above `threshold`.
        easy_above: pass rate above which a task is easy.

    Raises:
        RewardError: a trajectory has no such part.
    """
    label = _label(_part(group, part, "pass_rate_label"), threshold, easy_above)
    tags = _tags(group)
    return [(-1.0 if tag is None else float(tag == label), "" if tag == label else f"this task is {label}") for tag in tags]


def adactrl(
    group: Group,
    *,
    part: str,
    threshold: float = 0.5,
    easy_above: float = EASY_ABOVE,
    tag_coef: float = 0.5,
    length_coef: float = 0.5,
) -> list[float]:
    """Tag and length rewards of AdaCtrl (arXiv:2505.18822) beside the outcome: `tag_coef` tag + `length_coef` length.

    The tag's reward is that of `pass_rate_label`. The length's is 0 where the tag is not right; else, for length t and the
    group's longest T, 1 - (1 - cos(pi t / T)) / 2 of an easy task and (1 - cos(pi t / T)) / 2 of a hard one.

    Args:
        part: reward that says what is right: above `threshold`.
        easy_above: pass rate above which a task is easy.

    Raises:
        RewardError: a trajectory has no such part.
    """
    label = _label(_part(group, part, "adactrl"), threshold, easy_above)
    lengths = _lengths(group)
    longest = max(lengths, default=0) or 1
    earned = []
    for tag, tokens in zip(_tags(group), lengths, strict=True):
        rising = (1 - math.cos(math.pi * tokens / longest)) / 2
        of_length = 0.0 if tag != label else rising if label == "Hard" else 1 - rising
        earned.append(tag_coef * (-1.0 if tag is None else float(tag == label)) + length_coef * of_length)
    return earned


def best_in_group(group: Group, *, part: str) -> list[float]:
    """1 for the best of the group by a part, and for all that share its value; else 0. Raises RewardError without the part."""
    values = _part(group, part, "best_in_group")
    return [float(value == max(values)) for value in values]


def pairwise(group: Group, *, part: str) -> list[float]:
    """Share of the others in the group that a trajectory beats by a part, a tie counting half; 0.5 for a lone one.

    Raises:
        RewardError: a trajectory has no such part.
    """
    values = _part(group, part, "pairwise")
    if len(values) == 1:
        return [0.5]
    won = [sum((mine > other) + 0.5 * (mine == other) for other in values) - 0.5 for mine in values]
    return [wins / (len(values) - 1) for wins in won]


def safety_gate(
    group: Group,
    *,
    safety: str,
    helpfulness: str,
    below: float = 0.15,
    flag: str = "safety",
    whiten: bool = False,
    eps: float = 1e-6,
) -> list[float]:
    """The safety part where the task is tagged or the safety part is low, else the helpfulness part (Llama 2, arXiv:2307.09288).

    Args:
        safety: part of a safety model.
        helpfulness: part of a helpfulness model.
        below: safety below which it alone counts.
        flag: `task.meta[flag]` tags a task.
        whiten: whether log(r / (1 - r)) of the value r, in 0 to 1 and kept `eps` away from both, is whitened: less the
            group's mean, over its standard deviation (Llama 2 whitens over the batch); 0 where all are equal.

    Raises:
        RewardError: a trajectory lacks one of the parts, or has a value outside 0 to 1 that is to be whitened.
    """
    safe, helpful = _part(group, safety, "safety_gate"), _part(group, helpfulness, "safety_gate")
    tagged = [bool(given_json(trajectory.task.meta.get(flag))) for trajectory in group.trajectories]
    values = [s if tag or s < below else h for s, h, tag in zip(safe, helpful, tagged, strict=True)]
    if not whiten:
        return values
    if not all(0 <= value <= 1 for value in values):
        raise RewardError(f"safety_gate: whiten needs values in 0 to 1, got {min(values):g} to {max(values):g}")
    kept = [min(max(value, eps), 1 - eps) for value in values]
    logits = [math.log(value / (1 - value)) for value in kept]
    mean, spread = fmean(logits), pstdev(logits)
    return [(logit - mean) / spread if len(set(logits)) > 1 else 0.0 for logit in logits]


def ensemble(
    group: Group, *, parts: Sequence[str], how: Literal["mean", "min", "less_std", "less_variance"] = "mean", coef: float = 1.0
) -> list[float]:
    """Several parts as one, cautious where they disagree, against over-optimisation (arXiv:2310.02743).

    Args:
        parts: rewards to combine; of one scale, or normalised.
        how: their "mean"; their "min" (worst-case optimisation, eq. 4); or the mean less `coef` times their standard
            deviation or variance ("less_variance" is uncertainty-weighted optimisation, eq. 5). Both are population values.
        coef: of the standard deviation or variance.

    Raises:
        RewardError: no parts or an unknown way, or a trajectory lacks one of the parts.
    """
    if how not in ("mean", "min", "less_std", "less_variance"):
        raise RewardError(f"ensemble: how {how!r}; expected 'mean', 'min', 'less_std' or 'less_variance'")
    if not parts or isinstance(parts, str):
        raise RewardError(f"ensemble: parts {parts!r}; expected a list of parts")
    if how != "mean" and how != "min" and coef < 0:
        raise RewardError(f"ensemble: coef {coef}; expected 0 or more")
    members = list(zip(*(_part(group, part, "ensemble") for part in parts), strict=True))
    if how == "min":
        return [min(values) for values in members]
    doubt = {"mean": lambda spread: 0.0, "less_std": lambda spread: spread, "less_variance": lambda spread: spread**2}[how]
    return [fmean(values) - coef * doubt(pstdev(values)) for values in members]


def length_debiased(group: Group, *, part: str) -> list[float]:
    """A part less its linear dependence on length within the group: value - slope (length - mean length), by least squares.

    What is left has the group's mean and no correlation with length. Nothing is taken off where lengths are equal. In
    groups of two nothing but the mean is left; use it with eight or more.

    Raises:
        RewardError: a trajectory has no such part.
    """
    values, lengths = _part(group, part, "length_debiased"), _lengths(group)
    if not values:
        return []
    mean_value, mean_length = fmean(values), fmean(lengths)
    spread = sum((tokens - mean_length) ** 2 for tokens in lengths)
    if spread == 0:
        return values
    together = sum((v - mean_value) * (n - mean_length) for v, n in zip(values, lengths, strict=True))
    return [v - together / spread * (n - mean_length) for v, n in zip(values, lengths, strict=True)]


def _part(group: Group, part: str, reward: str) -> list[float]:
    for trajectory in group.trajectories:
        if part not in trajectory.parts:
            there = ", ".join(map(repr, trajectory.parts)) or "none"
            raise RewardError(f"{reward}: no part {part!r}; available: {there}. It must be in [reward], before {reward}")
    return [float(trajectory.parts[part]) for trajectory in group.trajectories]


def _lengths(group: Group) -> list[int]:
    return [trajectory.num_sampled for trajectory in group.trajectories]


def _label(values: Sequence[float], threshold: float, easy_above: float) -> str:
    rate = sum(value > threshold for value in values) / len(values) if values else 0.0
    return "Easy" if rate > easy_above else "Hard"


def _tags(group: Group) -> list[str | None]:
    """The tag that each trajectory opens its first message with, if it is one."""
    first = [trajectory.turns[0].action.get("content") if trajectory.turns else "" for trajectory in group.trajectories]
    return [_TAGS.get(text[:6].lower()) if isinstance(text, str) else None for text in first]
