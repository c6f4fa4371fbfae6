"""The reward `math_equal`: is the answer that a text gives the task's, as mathematics?"""

from __future__ import annotations

from functools import lru_cache
from typing import get_args

from rlft.errors import RewardError, TaskError
from rlft.rewards.extract import said
from rlft.rewards.grader import Canary, defaults, spoken
from rlft.rewards.math import caps as limits
from rlft.rewards.math import units as measures
from rlft.rewards.math.equal import Comparison, parse, parse_gold, same_text, same_value, tidy
from rlft.rewards.math.extract import Answer, Mode
from rlft.rewards.math.extract import extract as extracted
from rlft.rewards.math.numbers import is_number
from rlft.types import Task, Trajectory


def _canary(answer: str, gold: str, value: float) -> Canary:
    return Canary(Task(f"canary {answer} for {gold}", (), gold), rf"\boxed{{{answer}}}", value)


CANARIES = (
    _canary(r"\frac{1}{2}", "0.5", 1.0),
    _canary(r"x^2+2x+1", r"(x+1)^2", 1.0),
    _canary(r"2, 1", r"\{1, 2\}", 1.0),
    _canary(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 1.0),
    _canary(r"\frac{1}{3}", "0.5", 0.0),
    _canary(r"x^2+2x+2", r"(x+1)^2", 0.0),
    _canary("(1, 2)", "[1, 2]", 0.0),
    _canary("41", "42", 0.0),
)
UNEQUAL = "the answer is not equal to the expected one"
_COMMON = (
    r"-\sqrt{3}+2^{5}", r"(1,2]\cup[3,\infty)", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\sin(x)\cos x", r"\log_2 8", "5!", "|x-1|",
    r"\sum_{k=1}^{n} k", "x=3, y=4", r"x \le 5", r"\text{Evelyn}", r"28\%", r"2\pi r", r"e^{2i}", r"\binom{5}{2}", "3.14", "1:2", "a_{1}=2",
    r"f(x)=x^2+1", r"90^\circ", r"\int_0^1 x dx", r"5 \pm \sqrt{2}", r"7 \mod 3", r"\{1, 2\}", r"\frac{x}{y}",
)  # fmt: skip


@defaults(timeout_s=2.0, memory_mb=1024, on_error=0.0, canaries=CANARIES)
def math_equal(
    task: Task,
    trajectory: Trajectory,
    *,
    extract: Mode = "boxed",
    caps: bool = True,
    float_rounding: int = 6,
    strict: bool = True,
    allow_set_relation_comp: bool = True,
    units: bool = True,
) -> tuple[float, str]:
    r"""1 if the answer in the last thing said equals the task's as mathematics, else 0; with feedback.

    The task's answer is LaTeX or plain text; of one that has a \boxed{} the box counts, of one with
    "####" what follows it, else all of it.

    Args:
        extract: where the answer stands; see `rlft.rewards.math.extract.extract`.
        caps: refuse what cannot be computed in time without trying (`rlft.rewards.math.caps`).
        float_rounding: digits to which decimals are compared (`rlft.rewards.math.numbers.same_number`).
        strict: variables have to have the same names, and a set is no tuple.
        allow_set_relation_comp: an inequality may stand for the set that it describes, also where the task's
            answer is the set.
        units: whether 5 km and 5 m are two answers, and 12 and 12_8; else units and the bases of numerals are dropped. A unit that
            only one of the two has makes no difference.

    Raises:
        TaskError: the task's answer is missing, beyond the caps, or cannot be read as mathematics.
        RewardError: the answer is beyond the caps.
    """
    if extract not in get_args(Mode):
        raise TaskError(f"math_equal: extract {extract!r}; expected one of {', '.join(get_args(Mode))}")
    gold = _gold(task, caps)
    found = _said(trajectory, extract)
    if found.problem:
        return 0.0, found.problem
    answer = tidy(found.latex)
    same = same_text(answer, gold)
    if same is not None:
        return float(same), "" if same else UNEQUAL
    if caps:
        _within_caps(answer)
    value, unit = _measured(answer, found.latex, units)
    expected, expected_unit = _measured(gold, reference(task.answer).latex, units)
    factor = measures.factor(unit, expected_unit) if units else 1.0
    if factor is None:
        return 0.0, "the answer has another unit"
    if factor == 1.0 and same_text(value, expected):
        return 1.0, ""
    readings = parse(value)
    if factor != 1.0:
        readings = [reading * factor for reading in readings if is_number(reading)]
    same = same_value(readings, list(parse_gold(expected)), Comparison(float_rounding, strict, allow_set_relation_comp))
    if not same and len(readings) == 1 and factor == 1.0:
        return 0.0, "the answer cannot be read as mathematics"
    return float(same), "" if same else UNEQUAL


def _measured(tidied: str, latex: str, units: bool) -> tuple[str, str]:
    """A value, numerals with a base computed, and its unit."""
    value, unit = measures.split(tidied)
    return (measures.plain_numerals(value) if units else value), unit or measures.currency(latex)


def warm_up() -> None:
    """Fill the tables of the parser and sympy's caches with answers of the common kinds."""
    for canary in CANARIES:
        math_equal(canary.task, spoken(canary.task, canary.text))
    for latex in _COMMON:
        parse(tidy(latex))


def reference(answer: object) -> Answer:
    r"""A task's own answer: its box, else what follows "####" (as in GSM8K), else all of it."""
    text = str(answer).strip()
    return extracted(text.rpartition("####")[2], "whole")


def _said(trajectory: Trajectory, mode: Mode) -> Answer:
    return extracted(said(trajectory), mode)


def _gold(task: Task, caps: bool) -> str:
    """The task's answer, tidied. Raises TaskError unless it can be compared with."""
    found = Answer(problem="there is none") if task.answer is None else reference(task.answer)
    problem = found.problem or _defect(tidy(found.latex), caps)
    if problem:
        raise TaskError(f"math_equal cannot compare with the answer {str(task.answer)[:80]!r} of task {task.id!r}: {problem}")
    return tidy(found.latex)


@lru_cache(maxsize=4096)
def _defect(gold: str, caps: bool) -> str:
    """Why nothing can be compared with a gold answer, "" if it can."""
    try:
        if caps:
            limits.check(gold)
    except limits.Unsupported as beyond:
        return str(beyond)
    return "" if len(parse_gold(_measured(gold, "", True)[0])) > 1 else "it cannot be read as mathematics; use exact_match for such tasks"


def _within_caps(answer: str) -> None:
    try:
        limits.check(answer)
    except limits.Unsupported as beyond:
        raise RewardError(f"not computed: {beyond}") from None
