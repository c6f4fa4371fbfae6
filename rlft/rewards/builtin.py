"""The rewards that ship with rlft: functions of a task and a finished trajectory.

Whatever the policy wrote gets a number; only a task that cannot be graded raises RewardError.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from typing import Literal

from rlft.errors import RewardError, TaskError
from rlft.rewards.extract import gold, said, short, thinking, whole
from rlft.types import Task, Trajectory

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = rf"(?:(?<![\w.)\]])[-+\u2212])?[$€£]?(?:{_UNSIGNED})(?:[eE][-+]?\d+)?"
_FRACTION = re.compile(rf"(?P<top>{_NUMBER})(?:\s?/\s?(?P<bottom>(?:{_UNSIGNED})))?", re.ASCII)


def exact_match(task: Task, trajectory: Trajectory, *, case: bool = True) -> float:
    """1 if the last thing said is the answer, white space around both aside; else 0. What was thought before it is not read.

    Args:
        case: whether upper and lower case differ.

    Raises:
        TaskError: there is no answer, or it is a list or a table.
    """
    text, answer = said(trajectory).strip(), str(_answer(task, "exact_match")).strip()
    return float(not thinking(trajectory) and (text == answer if case else text.casefold() == answer.casefold()))


def number_match(task: Task, trajectory: Trajectory, *, rel_tol: float = 1e-12, abs_tol: float = 0.0) -> float:
    """1 if the last number said equals the last number of the answer; else 0. What was thought before it is not read.

    Reads 1,234.5, -3, 6e-2, .5, $7 and 3/4. A minus that follows a word or a number is an operator,
    not a sign. Numbers are compared as floats: at the default tolerance whole numbers below 1e12 exactly.

    Raises:
        TaskError: the answer holds no finite number.
    """
    expected = _last_number(str(_answer(task, "number_match")))
    if expected is None or not math.isfinite(expected):
        raise TaskError(f"number_match: the answer {task.answer!r} of task {task.id!r} holds no finite number")
    found = _last_number(said(trajectory))
    return float(found is not None and math.isclose(found, expected, rel_tol=rel_tol, abs_tol=abs_tol))


def regex(task: Task, trajectory: Trajectory, *, pattern: str, mode: Literal["search", "fullmatch"] = "search") -> float:
    """1 if the last message matches `pattern` (flags go inline, as in "(?is)..."); else 0.

    The pattern sees the thoughts too, as `format_tags` does. A message whose thought never ended matches nothing.

    Raises:
        RewardError: the pattern is not a regular expression, or the mode is unknown.
    """
    if mode not in ("search", "fullmatch"):
        raise RewardError(f"regex: mode {mode!r}; expected 'search' or 'fullmatch'")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RewardError(f"regex: {pattern!r} is not a regular expression: {error}") from None
    return float(not thinking(trajectory) and getattr(compiled, mode)(whole(trajectory)) is not None)


def format_tags(task: Task, trajectory: Trajectory, *, tags: Sequence[str]) -> float:
    """1 if every tag is opened and closed exactly once, one after the other in the given order; else 0.

    The whole message counts, and with it the mark of a thought that the prompt has opened (`Turn.opened`).

    Raises:
        RewardError: `tags` is one text instead of a list of them, or names none.
    """
    if isinstance(tags, str) or not tags:
        raise RewardError(f"format_tags: tags {tags!r}; expected a list such as {[tags or 'answer']!r}")
    any_tag = "|".join(re.escape(tag) for tag in tags)
    expected = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    return float(re.findall(rf"</?(?:{any_tag})>", whole(trajectory)) == expected)


def length(task: Task, trajectory: Trajectory, *, budget: int) -> float:
    """0 up to `budget` sampled tokens, then falling in a line to -1 at twice the budget and beyond.

    Raises:
        RewardError: the budget is not positive.
    """
    if budget <= 0:
        raise RewardError(f"length: budget {budget}; expected a positive number of tokens")
    over = max(0, trajectory.num_sampled - budget)
    return -min(1.0, over / budget) if over else 0.0


def overlong(task: Task, trajectory: Trajectory, *, max_tokens: int, buffer: int) -> float:
    """Soft overlong punishment (arXiv:2503.14476, eq. 13) of the sampled tokens.

    0 up to `max_tokens - buffer`, from there in a line to -1 at `max_tokens`, -1 beyond.

    Raises:
        RewardError: unless 0 < buffer <= max_tokens.
    """
    if not 0 < buffer <= max_tokens:
        raise RewardError(f"overlong: buffer {buffer}; expected 1 to max_tokens = {max_tokens}")
    over = max(0, trajectory.num_sampled - (max_tokens - buffer))
    return -min(1.0, over / buffer) if over else 0.0


def _answer(task: Task, reward: str) -> object:
    answer = gold(task, reward)
    if isinstance(answer, (list, tuple, dict)):
        raise TaskError(f"{reward}: the answer {short(answer)} of task {task.id!r} is no single text or number; use set_match for several")
    return answer


def _last_number(text: str) -> float | None:
    last = deque(_FRACTION.finditer(text), maxlen=1)
    if not last:
        return None
    top, bottom = _plain(last[0]["top"]), _plain(last[0]["bottom"] or "1")
    return top / bottom if bottom else math.nan


def _plain(number: str) -> float:
    return float(number.replace(",", "").replace("\u2212", "-").translate(_NO_CURRENCY))


_NO_CURRENCY = str.maketrans("", "", "$€£")
