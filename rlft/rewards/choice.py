"""Multiple choice: one option named, and named last."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from rlft.errors import TaskError
from rlft.rewards.extract import given_json, gold, last_boxed, last_tag, said, short
from rlft.types import Task, Trajectory

_STATED = re.compile(
    r"\b(?:answer|choice|option)\b[*_]{0,3}[ \t]{0,4}(?:(?:is|would be|must be|should be)\b[ \t]{0,4}:?|[:=])[*_ \t]{0,6}"
    r"(?:(?:option|choice|answer)\b[ \t]{0,4}:?[ \t]{0,4})?(?=(?P<said>[^\n]{0,300}))",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s{0,3}\{([^{}]*)\}")
_LIST = re.compile(
    r"(?:options?\s|choices?\s|either\s|both\s)?[(\[]?([A-Z])\b[)\]]?(?P<more>(?:(?:\s{0,2}(?:,|;|/|\||&|\+|\band\b|\bn?or\b)\s{0,2}){1,2}|\s{1,3}|(?=[(\[]))"
    r"[(\[]?[A-Z](?![A-Za-z0-9'])[)\]]?)?"
)
_DENIAL = (
    r"(?:\b(?:not|nor|neither|never|except|cannot)|n['\u2019]t)\b"
    r"(?:\s{1,3}(?:be|the|an?|option|choice|answer)\b){0,3}[\s:]{1,3}[(\[*\"']{0,3}"
)
_DENIED = re.compile(_DENIAL + r"(?=(?P<denied>[^\n]{0,300}))")  # at the start of what is stated
_DENIED_LAST = re.compile(_DENIAL + "$")  # right before the letter
_GOLD = re.compile(r"[(\[]?([A-Za-z])[)\].:]{1,2}\s{1,4}(\S.*)", re.DOTALL)  # "B) Paris"
_ENUMERATED = re.compile(r"[(\[]?([A-Z])[)\].:]{1,2}\s")
_AT_END = re.compile(
    r"(?P<before>(?<![A-Za-z0-9'])[A-Z][)\]]?\s{0,2}(?:,|;|/|\||&|\+|-|\u2013|\band\b|\bn?or\b|\s)\s{0,2}(?:and\s|n?or\s)?)?(?<![A-Za-z0-9'])[(\[]?(?P<last>[A-Z])[)\]]?$"
)

MAX_SENTENCE = 300  # characters of a sentence in which an option is declared right
_SENTENCE_END = re.compile(r"[.!?][\"')\]*]{0,3}\s{1,3}(?=\S)")
_DECLARED = re.compile(
    r"(?<![A-Za-z0-9'])(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s)?[(\[*]{0,3}(?P<letter>[A-Z0-9])[)\]*]{0,3}\s"
    r"(?:is|(?:must|should|has to) be)\s(?:thus\s|therefore\s|indeed\s|clearly\s)?(?:the\s|our\s)?(?:only\s|most\s|single\s)?"
    r"(?:right|correct|best|true|answer|appropriate|accurate)\b"
)
_LISTED_BEFORE = re.compile(r"(?<![A-Za-z0-9])[A-Z0-9][)\]*]{0,3}(?:\s?[,/&+|]|\s(?:and|n?or))\s{0,3}$")  # "A and" before "B is correct"
_DOUBTED = re.compile(
    r"\b(?:not|no|nor|neither|never|cannot|without|except|if|whether|unless|suppose|assuming|were|would|might|may|could|or|wrong|incorrect|false"
    r"|unlikely|doubt|rather than|instead of)\b|n['\u2019]t\b|\?$",
    re.IGNORECASE,
)


def multiple_choice(task: Task, trajectory: Trajectory) -> tuple[float, str]:
    r"""1 if the option named last is the right one; else 0. Which one is named does not depend on which is right.

    Read in this order: the last <answer>...</answer>, the last \boxed{...} (which of both stands later), the last "answer is ..."
    or "answer: ..." if it stands after these, and without any of them the end of the last line or, in its last sentence, the
    option that is called right ("option B is correct") or the only one whose text stands there ("Therefore, Paris is the
    capital"). Naming several options at the place that counts is wrong. Where `task.meta["options"]` (or "choices") holds the
    options' texts, as a list or as {"A": text}, the text of an option names it too, and a letter with the text of another one is wrong.

    Raises:
        TaskError: the answer of the task is neither a letter ("B", "B) text"), nor the text or the place (an int from 0) of a known option.
    """
    options = _options(task)
    right = _gold_letter(task, options)
    named = stated_choice(said(trajectory), options)
    return float(named == right), "" if named == right else f"named {named or 'no single option'}"


def stated_choice(text: str, options: Mapping[str, str] | None = None) -> str:
    """The letter of the option that a text names last, or "" if it names none or several at once.

    Args:
        options: the options' texts by letter, where they are known; then other letters name nothing.
    """
    known = options or {}
    marked = [(text.rfind("</answer>"), last_tag(text, "answer")), (text.rfind(r"\boxed{"), last_boxed(text))]
    place, inside = max(((at, inside) for at, inside in marked if inside is not None), default=(0, None))
    letter = None if inside is None else _inside(inside, known)
    for match in _STATED.finditer(text, place):
        if not match["said"].lstrip("$ ").startswith((r"\boxed", "<answer>")):
            named = _named(match["said"], known)
            denied = _DENIED.match(match["said"].lstrip())
            if denied and letter and _named(denied["denied"], known) == letter:
                named = ""  # what was named before is taken back
            letter = letter if named is None else named
    return _of_last_line(text, known) if letter is None else letter


def _inside(marked: str, options: Mapping[str, str]) -> str:
    """The option named between marks that hold the answer: there must be one."""
    boxed = last_boxed(marked)
    named = _named(marked if boxed is None else boxed, options)
    if named is None and boxed is None:
        named = stated_choice(marked, options)
    return named or ""


def _named(words: str, options: Mapping[str, str]) -> str | None:
    """The one option that a few words name: a letter, a letter with its text, or the text. "" for several, None for none."""
    bare = _bare(words)
    by_text = [letter for letter, text in options.items() if _plain(text) == _plain(bare)]
    is_label = bare.upper() in options or (len(bare) == 1 and bare.isascii() and bare.isalpha())
    alone = bare.upper() if is_label else ""
    if by_text and alone not in options:
        return by_text[0] if len(by_text) == 1 else ""
    listed = _LIST.match(bare)
    if not alone and (listed is None or (options and listed[1] not in options)):
        return None
    if alone or listed is None:
        return alone if not options or alone in options else None
    if listed["more"]:
        return ""
    letter, rest = listed[1], _plain(bare[listed.end() :].lstrip(" .):-\u2013"))
    contradicts = any(_plain(text) == rest for text in options.values()) and _plain(options[letter]) != rest
    return "" if contradicts else letter


def _of_last_line(text: str, options: Mapping[str, str]) -> str:
    """The option at the end of the last line. A line of an enumeration of several options names none of them."""
    lines = [_bare(line) for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if len(last) == 1 or any(_plain(last) == _plain(option) for option in options.values()):
        alone = {line.upper() for line in lines if len(line) == 1}
        return (_named(last, options) or "") if len(alone) <= 1 else ""
    if head := _ENUMERATED.match(last):
        enumerated = {match[1] for line in lines if (match := _ENUMERATED.match(line) or re.fullmatch("([A-Z])", line))}
        return (_named(last, options) or "") if enumerated == {head[1]} else ""
    at_end = _AT_END.search(last[-200:])
    denied = at_end is not None and _DENIED_LAST.search(last[-200:][: at_end.start("last")])
    if at_end is None:
        return _declared(_SENTENCE_END.split(last[-2 * MAX_SENTENCE :])[-1], options)
    letter = "" if at_end["before"] or denied else at_end["last"]
    return letter if not options or letter in options else ""


def _declared(sentence: str, options: Mapping[str, str]) -> str:
    """The option that a sentence calls right, or the only one whose text stands in it; "" where it is in doubt."""
    if len(sentence) > MAX_SENTENCE:
        return ""
    found = {}
    for match in _DECLARED.finditer(sentence):
        before = sentence[: match.start()]
        found[match["letter"]] = bool(_DOUBTED.search(re.split(r"[,;:]", before)[-1]) or _LISTED_BEFORE.search(before))
    known = {letter: doubted for letter, doubted in found.items() if not options or letter in options}
    if known:
        letter, doubted = next(iter(known.items()))
        return "" if doubted or len(known) > 1 or sentence.endswith("?") else letter
    named, left = [], _plain(sentence)
    for letter, text in sorted(options.items(), key=lambda option: -len(option[1])):
        spelled = re.compile(rf"(?<![\w.-]){re.escape(_plain(text))}(?!\w|\.\d)") if 3 <= len(text) <= MAX_SENTENCE else None
        if spelled is not None and spelled.search(left):
            named.append(letter)
            left = spelled.sub("\n", left)
    return named[0] if len(named) == 1 and not _DOUBTED.search(left) else ""


def _bare(words: str) -> str:
    """Words without the marks around them."""
    words = _WRAPPED.sub(r"\1", words[:2000]).replace("**", "").strip(" \t\r\n*_$`\"'.,;:!")
    if len(words) <= 3:
        words = words.strip("()[]{} ")
    return words


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()


def _options(task: Task) -> dict[str, str]:
    given = given_json(task.meta.get("options", task.meta.get("choices")))
    if isinstance(given, Mapping) and isinstance(given.get("text"), Sequence):  # as in ARC: {"label": [...], "text": [...]}
        given = dict(zip(given.get("label", ascii_uppercase), given["text"], strict=False))
    if isinstance(given, Mapping):
        return {str(letter).strip().upper(): str(text) for letter, text in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return {letter: str(text) for letter, text in zip(ascii_uppercase, given, strict=False)}
    if given is not None:
        raise TaskError(f"multiple_choice: the options {short(given)} of task {task.id!r} are neither a list nor a table")
    return {}


def _gold_letter(task: Task, options: Mapping[str, str]) -> str:
    answer = gold(task, "multiple_choice")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return list(options)[answer]
    letter = str(answer).strip().strip("()[].").upper()
    if letter in options or (not options and len(letter) == 1 and letter in ascii_uppercase):
        return letter
    if lettered := _GOLD.fullmatch(str(answer).strip()):
        letter = lettered[1].upper()
        if not options or _plain(options.get(letter, "")) == _plain(lettered[2]):
            return letter
    by_text = [key for key, text in options.items() if _plain(text) == _plain(str(answer))]
    if len(by_text) != 1:
        raise TaskError(f"multiple_choice: the answer {short(answer)} of task {task.id!r} names no single option")
    return by_text[0]
