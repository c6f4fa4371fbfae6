"""Where the answer stands in what the policy wrote, and JSON as the rewards read it.

Nothing here takes more than time linear in the text, and no text raises but by ValueError from `read_json`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Hashable
from typing import Any, NamedTuple

from rlft.chat.thoughts import answer_of
from rlft.errors import TaskError
from rlft.types import Task, Trajectory

MAX_DEPTH = 64  # of JSON; deeper is refused
UNFINISHED = "the thought never ended"
MAX_INT_DIGITS = 300  # so that an int is always within a float's range
_GAPS = " \t\r\n;,"
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+#-]*)(.*)", re.DOTALL)  # marks, language, the rest of the line


def gold(task: Task, reward: str) -> Any:
    """The task's answer. Raises TaskError where there is none."""
    if task.answer is None:
        raise TaskError(f"{reward}: task {task.id!r} has no answer to compare with; set data.answer to the field that holds it")
    return task.answer


def whole(trajectory: Trajectory) -> str:
    """The last message with its thoughts, the mark included with which the prompt opened them; "" for one without text."""
    text = trajectory.text if isinstance(trajectory.text, str) else ""
    return trajectory.turns[-1].opened + text if text else ""


def thinking(trajectory: Trajectory) -> bool:
    """Whether the last message ends within a thought: it holds no answer, be it right that nothing is said."""
    return answer_of(whole(trajectory)) is None


def said(trajectory: Trajectory) -> str:
    """The last thing said, without what was thought before it; "" for a message without text and for a thought that never ended."""
    return answer_of(whole(trajectory)) or ""


def final(trajectory: Trajectory) -> str:
    """Of `said`, the inside of the last <answer>...</answer>; all of it where there is no such pair."""
    text = said(trajectory)
    inside = last_tag(text, "answer")
    return text if inside is None else inside


def last_tag(text: str, tag: str) -> str | None:
    """The inside of the last <tag>...</tag>, or None."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if start < 0 else text[start + len(tag) + 2 : end]


def last_boxed(text: str) -> str | None:
    r"""The inside of the last \boxed{...} whose braces close, or None."""
    start = text.rfind(r"\boxed{")
    depth = 0
    for place in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 7 : place]
    return None


class Block(NamedTuple):
    """A fenced block."""

    language: str  # in lower case; "" where it names none
    text: str  # its lines, each with its end
    closed: bool


def blocks(text: str) -> list[Block]:
    """The blocks between ``` or ~~~ in a text. A fence that is never closed ends with the text. Lines end at "\\n" alone."""
    found: list[Block] = []
    fence, language, inside = "", "", []
    for line in text.split("\n"):
        mark = _FENCE.fullmatch(line)
        if mark and not fence and not (mark[1][0] == "`" and "`" in mark[3]):  # such as ```x``` within a line
            fence, language, inside = mark[1], mark[2].casefold(), []
        elif mark and fence and mark[1].startswith(fence) and not mark[2] and not mark[3].strip():
            found.append(Block(language, "".join(inside), True))
            fence = ""
        elif fence:
            inside.append(f"{line}\n")
    return [*found, Block(language, "".join(inside).removesuffix("\n"), False)] if fence else found


def last_fence(text: str, *languages: str) -> str | None:
    """The inside of the last closed block that names one of the languages; else of the last that names none; else None."""
    closed = [block for block in blocks(text) if block.closed]
    named = [block for block in closed if block.language in languages]
    fitting = named or [block for block in closed if not block.language]
    return fitting[-1].text.removesuffix("\n") if fitting else None


def read_json(text: str) -> Any:
    """The JSON of the last ```json block, else of the last one without a language, else of the whole text.

    Raises:
        ValueError: it is no such JSON; the message says why.
    """
    fenced = last_fence(text, "json")
    return strict_json(text if fenced is None else fenced)


def strict_json(text: str) -> Any:
    """A JSON text as data.

    Stricter than json.loads: no NaN, no infinity, no int of more than MAX_INT_DIGITS digits, no nesting deeper than MAX_DEPTH.

    Raises:
        ValueError: it is no such JSON; the message says why.
    """
    try:
        return _shallow(_JSON.decode(text))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def json_values(text: str) -> list[Any]:
    """JSON values that stand one behind the other, at least one, with white space, commas or semicolons between.

    Raises:
        ValueError: as of `strict_json`.
    """
    values, place = [], len(text) - len(text.lstrip(_GAPS))
    try:
        while place < len(text) or not values:
            value, place = _JSON.raw_decode(text, place)
            values.append(_shallow(value))
            while place < len(text) and text[place] in _GAPS:
                place += 1
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return values


def _shallow(value: Any) -> Any:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for node in level for item in _children(node)]
    if level:
        raise ValueError("it is nested too deep")
    return value


def is_json(text: str) -> bool:
    """Whether `read_json` can read it."""
    with contextlib.suppress(ValueError):
        read_json(text)
        return True
    return False


def given_json(value: Any) -> Any:
    """What a task gives as data or as the JSON text of it (as columns of a table hold it): as data."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # a text that is no JSON stands for itself
            return json.loads(value)
    return value


def canonical(value: Any) -> Hashable:
    """Equal for equal JSON values and only for these: true is not 1, but 1 is 1.0, and the order of keys is nothing."""
    if isinstance(value, dict):
        return "object", frozenset((key, canonical(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "array", tuple(canonical(item) for item in value)
    return type(value).__name__ if isinstance(value, (bool, str)) else "number", value


def short(value: Any, limit: int = 80) -> str:
    """A value as it may stand in feedback: one line of printable characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _children(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _int(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("it holds a number beyond the range of floats")
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_int=_int, parse_float=_float, parse_constant=_refuse)
