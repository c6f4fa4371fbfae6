"""Rewards for sets, lists and rankings, and the measures of information retrieval as plain functions."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlft.errors import RewardError, TaskError
from rlft.rewards.extract import UNFINISHED, final, given_json, gold, last_boxed, read_json, short, thinking
from rlft.rewards.structured import f1
from rlft.types import Task, Trajectory

_BULLET = re.compile(r"(?:[-*\u2022]|\d{1,4}[.)])\s+")


def set_match(
    task: Task, trajectory: Trajectory, *, mode: Literal["exact", "f1", "jaccard"] = "exact", case: bool = False
) -> tuple[float, str]:
    r"""How well the items said agree with the answer's, order and repetition aside.

    Items are a JSON list, or what stands in the last \boxed{...} or the final answer, one a line or between commas (semicolons
    if there are any), less bullets, quotation marks and brackets.

    Args:
        mode: "exact" is 1 for the same set, else 0; "f1" and "jaccard" (|both| / |either|) count shared items.
        case: whether upper and lower case differ.

    Raises:
        TaskError: the task's answer is no list and no text.
        RewardError: the mode is unknown.
    """
    if mode not in ("exact", "f1", "jaccard"):
        raise RewardError(f"set_match: mode {mode!r}; expected 'exact', 'f1' or 'jaccard'")
    wanted, found = set(_gold_items(task, "set_match", case)), set(items(final(trajectory), case))
    if thinking(trajectory):
        return 0.0, UNFINISHED
    shared, either = len(wanted & found), len(wanted | found)
    value = float(wanted == found)
    if mode == "f1":
        value = f1(Counter(found), Counter(wanted))
    elif mode == "jaccard":
        value = shared / either if either else 1.0
    return value, f"{shared} of {len(wanted)} items right, {len(found)} given"


def list_match(
    task: Task, trajectory: Trajectory, *, mode: Literal["exact", "positions"] = "exact", case: bool = False
) -> tuple[float, str]:
    """How well the list said (written as for `set_match`) agrees with the answer's, in order.

    Args:
        mode: "exact" is 1 for the same list, else 0; "positions" is the share of places, of the longer list, that agree.
        case: whether upper and lower case differ.

    Raises:
        TaskError: the task's answer is no list and no text.
        RewardError: the mode is unknown.
    """
    if mode not in ("exact", "positions"):
        raise RewardError(f"list_match: mode {mode!r}; expected 'exact' or 'positions'")
    wanted, found = _gold_items(task, "list_match", case), items(final(trajectory), case)
    if thinking(trajectory):
        return 0.0, UNFINISHED
    right = sum(a == b for a, b in zip(wanted, found, strict=False))
    longer = max(len(wanted), len(found))
    value = float(wanted == found) if mode == "exact" else right / longer if longer else 1.0
    return value, f"{right} of {len(wanted)} places right, {len(found)} given"


def ranking(
    task: Task, trajectory: Trajectory, *, k: int = 10, ndcg: float = 1.0, recall: float = 0.2, rbo: float = 0.1, p: float = 1.0
) -> tuple[float, str]:
    """Weighted mean of NDCG@k, recall@k and rank-biased overlap for a full permutation of the candidates; else 0.

    As ReasonRank (arXiv:2508.07050) weighs them; its reward is this value times the sum of the weights (1.3).
    The ranking is written "[3] > [1] > [2]", as a JSON list, or one id a line. The answer is the ideal order, a list of ids
    or a text like the one asked for. Gains come from `task.meta["relevant"]`, the relevant ids or {id: gain}; without it
    the i-th of n has gain n - i. An answer {id: gain} stands for both, with the larger gains first.

    Args:
        k: depth of NDCG and of recall.
        ndcg: weight of NDCG@k.
        recall: weight of recall@k.
        rbo: weight of the rank-biased overlap with the ideal order.
        p: its persistence; 1 is the mean overlap over all depths, as in ReasonRank.

    Raises:
        TaskError: the task has no usable ideal order.
        RewardError: an option is out of range, or no weight is positive.
    """
    weights = (ndcg, recall, rbo)
    if k < 1 or not 0 < p <= 1 or min(weights) < 0 or sum(weights) <= 0:
        raise RewardError(f"ranking: k {k}, p {p}, weights {weights}; expected k >= 1, 0 < p <= 1, weights >= 0 and one positive")
    ideal, gains = _ideal(task)
    found = _ids(final(trajectory))
    if sorted(found) != sorted(ideal):
        return 0.0, f"{len(found)} ids given; expected each of the {len(ideal)} candidates once"
    parts = (
        ndcg_at([gains.get(item, 0.0) for item in found], k),
        recall_at(found, {item for item, gain in gains.items() if gain > 0}, k),
        rank_biased_overlap(found, ideal, p),
    )
    value = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)
    return value, f"ndcg@{k} {parts[0]:.3f}, recall@{k} {parts[1]:.3f}, rbo {parts[2]:.3f}"


def ndcg_at(gains: Sequence[float], k: int) -> float:
    """Normalised discounted cumulative gain of the first k: sum of gain / log2(rank + 1) over that of the best order.

    Gains are linear (as in trec_eval) and stand in the order of the ranking, all candidates included; 1 where none is positive.
    """

    def dcg(ordered: Sequence[float]) -> float:
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ordered[:k]))

    best = dcg(sorted(gains, reverse=True))
    return dcg(gains) / best if best > 0 else 1.0


def recall_at(found: Sequence[str], relevant: set[str], k: int) -> float:
    """Share of the relevant ids among the first k, of those that fit there: hits / min(k, |relevant|); 1 where none is relevant."""
    return len(set(found[:k]) & relevant) / min(k, len(relevant)) if relevant else 1.0


def rank_biased_overlap(first: Sequence[str], second: Sequence[str], p: float = 1.0) -> float:
    """Rank-biased overlap of two lists without repetition, cut at the longer one and normalised, so that equal lists have 1.

    sum_d p^(d-1) |first[:d] & second[:d]| / d over sum_d p^(d-1) (Webber et al. 2010); p = 1 is the average overlap.
    """
    left: set[str] = set()
    right: set[str] = set()
    overlap, total, norm = 0, 0.0, 0.0
    for depth in range(1, max(len(first), len(second)) + 1):
        for mine, other, item in ((left, right, first[depth - 1 : depth]), (right, left, second[depth - 1 : depth])):
            mine.update(item)
            overlap += len(other.intersection(item))
        total += p ** (depth - 1) * overlap / depth
        norm += p ** (depth - 1)
    return total / norm if norm else 1.0


def items(text: str, case: bool = True) -> list[str]:
    """The items that a text lists: a JSON list, lines, or what stands between commas or semicolons."""
    boxed = last_boxed(text)
    text = text if boxed is None else boxed
    try:
        value = read_json(text)
    except ValueError:
        value = _split(text)
    found = value if isinstance(value, list) else [value]
    return [_item(item, case) for item in found]


def _split(text: str) -> list[str]:
    lines = [line for line in text.strip().strip("{}[]()").splitlines() if line.strip()]
    if len(lines) > 1:
        parts = [_BULLET.sub("", line.strip(), count=1) if _BULLET.match(line.strip()) else line for line in lines]
    else:
        parts = "".join(lines).split(";" if ";" in text else ",")
    return [part.strip(" \t,;\"'`") for part in parts if part.strip(" \t,;\"'`")]


def _item(item: Any, case: bool) -> str:
    text = " ".join(item.split()) if isinstance(item, str) else json.dumps(item, sort_keys=True)
    return text if case else text.casefold()


def _gold_items(task: Task, reward: str, case: bool) -> list[str]:
    answer = gold(task, reward)
    if isinstance(answer, str):
        return items(answer, case)
    if not isinstance(answer, Sequence):
        raise TaskError(f"{reward}: the answer {short(answer)} of task {task.id!r} is neither a list nor a text")
    return [_item(item, case) for item in answer]


def _ids(text: str) -> list[str]:
    """Ids of a ranking: between ">" signs if there are any, else as `items` are written."""
    if ">" not in text:
        return [item.strip(" []") for item in items(text)]
    chain = [line for line in text.splitlines() if ">" in line]
    return [part.strip(" \t[]().,;\"'`*$") for part in chain[-1].split(">")]


def _ideal(task: Task) -> tuple[list[str], dict[str, float]]:
    answer, relevant = given_json(gold(task, "ranking")), given_json(task.meta.get("relevant"))
    if isinstance(answer, Mapping):
        gains = _gains(answer, task)
        ideal = sorted(gains, key=lambda item: -gains[item])
    else:
        ideal = _ids(answer) if isinstance(answer, str) else [str(item) for item in answer] if isinstance(answer, Sequence) else []
        gains = {item: float(len(ideal) - i) for i, item in enumerate(ideal)}
    if isinstance(relevant, Mapping):
        gains = _gains(relevant, task)
    elif isinstance(relevant, str) or not isinstance(relevant, Sequence | None):
        raise TaskError(f"ranking: task {task.id!r}: meta['relevant'] is {short(relevant)}; expected a list of ids, or their gains")
    elif relevant is not None:
        gains = {str(item): 1.0 for item in relevant}
    if not ideal or len(set(ideal)) < len(ideal) or not set(gains) <= set(ideal):
        raise TaskError(
            f"ranking: task {task.id!r}: the answer {short(answer)} is no order of different ids, or meta['relevant'] names others"
        )
    return ideal, gains


def _gains(given: Mapping[Any, Any], task: Task) -> dict[str, float]:
    numbers = [gain for gain in given.values() if isinstance(gain, (int, float)) and 0 <= gain < math.inf]
    if len(numbers) < len(given):
        raise TaskError(f"ranking: task {task.id!r}: the gains {short(given)}; expected numbers of 0 or more")
    return {str(item): float(gain) for item, gain in given.items()}
