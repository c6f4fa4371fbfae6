r"""What a text gives as its answer: the last \boxed{...}, whole or not at all.

Nothing is guessed: without a marked answer there is none, and a marked one is never shortened. Pure
string functions; what they return is LaTeX without delimiters.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Literal

Mode = Literal["boxed", "boxed_or_last", "whole"]
MAX_LENGTH = 2000  # characters of an answer
MAX_BETWEEN = 70  # characters between two boxes of one list

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is no brace
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_STATED = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)[\s*]*(?=[^\s.])|\banswer\s*(?=\$|\\\(|\\\[)", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]{0,20}####[ \t]*+(?=\S)", re.MULTILINE)
_SENTENCE = re.compile(r"[^\n]*?(?=[\s*.]{0,20}(?:\n|$)|\**\.\s)")
_MATH = re.compile(
    rf"(?:\$\$(?P<dollars>(?:\\\$|[^$]){{1,{MAX_LENGTH}}})\$\$|\\\[(?P<bracket>(?:[^\\]|\\[^\[\]]){{1,{MAX_LENGTH}}}+)\\\]"
    rf"|(?<![\\\d])\$(?P<inline>(?:\\\$|[^$\n]){{1,{MAX_LENGTH}}})\$|\\\((?P<paren>(?:[^\n\\]|\\[^\n()]){{1,{MAX_LENGTH}}}+)\\\))"
    r"(?P<percent>[ \t]*(?:\\?%|percent\w*|pct))?"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!sqrt|log|sin|cos|tan|pi|and|or|percent|pct)[A-Za-z]{2,}|\n")
_DELIMITERS = re.compile(r"(?<!\\)\$|\\[()\[\]]")
_FULL_STOP = re.compile(r"(?<!\\right)\s*\.$")
_SPACING = re.compile(r"\\(?:quad|qquad|text|textbf|mbox)(?![A-Za-z])|\\[,;:! ]|[{}]")
_SEPARATED = re.compile(r"[\s.]*|\s*(?:,|;|,?\s*\band\b|,?\s*\bor\b)\s*")
_WORDS = re.compile(r"(?:[^\s=]+\s+){0,3}(?:and|or)\s*(?:[^\s=]+\s*=)?\s*")  # "apples and", "for part a and", "and y ="


@dataclass(frozen=True)
class Answer:
    """The answer that a text gives, or why it gives none."""

    latex: str = ""
    problem: str = ""


def extract(text: str, mode: Mode = "boxed") -> Answer:
    r"""The answer of a text.

    Args:
        mode: "boxed" takes the last \boxed{...} or \fbox{...}; boxes that form one list ("\boxed{1} and
            \boxed{2}") are one answer. "boxed_or_last" takes, where there is no box, the last <answer> tag,
            else what follows the last "answer is", "answer:" or "####", else the last mathematics between dollar
            signs (or \(\), \[\]), else the text if it has no words. "whole" takes the text itself where there
            is no box.
    """
    if _BOX.search(text):
        found = _boxed(text)
    else:
        found = {"boxed": lambda: None, "boxed_or_last": lambda: _last_marked(text), "whole": lambda: text}[mode]()
    if found is None:
        return Answer(problem="no marked answer" if mode == "boxed_or_last" else r"no answer in a closed \boxed{}")
    if len(found) > MAX_LENGTH:
        return Answer(problem=f"the answer has {len(found)} characters; at most {MAX_LENGTH} are read")
    latex = bare(found)
    return Answer(latex) if latex else Answer(problem="the answer is empty")


def bare(latex: str) -> str:
    """Mathematics without dollar signs and other delimiters, outer white space and a full stop at its end."""
    return _FULL_STOP.sub("", _DELIMITERS.sub(" ", latex).strip())


def _boxed(text: str) -> str | None:
    """The contents of the last box, or of the list of boxes that ends with it. None if the last box is not closed."""
    found: list[str] = []
    until = len(text)
    for opening in reversed(list(_BOX.finditer(text))):
        closing = _closing(text, opening.end())
        if closing is None or closing >= until or (found and not _one_list(text[closing + 1 : until])):
            break
        content = text[opening.end() : closing]
        if not found or found[-1].strip() != content.strip():
            found.append(content)
        until = opening.start()
    return ", ".join(reversed(found)) if found else None


def _closing(text: str, inside: int) -> int | None:
    """Where the brace that was opened just before `inside` is closed."""
    depth = 1
    for brace in _BRACE.finditer(text, inside):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return brace.start()
    return None


def _one_list(between: str) -> bool:
    if len(between) > MAX_BETWEEN:
        return False
    words = _SPACING.sub(" ", _DELIMITERS.sub(" ", between)).strip()
    return bool(_SEPARATED.fullmatch(words) or _WORDS.fullmatch(words))


def _last_marked(text: str) -> str | None:
    if (tagged := _tagged(text)) is not None:
        return tagged
    marks = [mark for mark in (_last(_STATED, text), _last(_HASHES, text)) if mark]
    if marks:
        after = text[max(mark.end() for mark in marks) :]
        found = _run(after) if _MATH.match(after) else None
        return found or _SENTENCE.match(after)[0].rpartition(" is ")[2]  # type: ignore[index]  # it matches everywhere
    return _run(text, last=True) or (None if _PROSE.search(text.strip()) else text)


def _tagged(text: str) -> str | None:
    found, inside = None, None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            inside = tag.end()
        elif inside is not None:
            found, inside = text[inside : tag.start()], None
    return found


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _run(text: str, last: bool = False) -> str | None:
    """The first mathematics in a text, or the last, with what is listed with it ("$1$, $2$ and $3$")."""
    runs: list[tuple[int, list[str]]] = []  # where each run ends, and what it lists
    for match in _MATH.finditer(text):
        content = next(filter(None, match.group("dollars", "bracket", "inline", "paren"))) + (match["percent"] or "")
        if runs and match.start() - runs[-1][0] <= MAX_BETWEEN and _SEPARATED.fullmatch(text[runs[-1][0] : match.start()]):
            runs[-1] = (match.end(), [*runs[-1][1], content])
        elif runs and not last:
            break
        else:
            runs.append((match.end(), [content]))
    return ", ".join(runs[-1][1]) if runs else None
