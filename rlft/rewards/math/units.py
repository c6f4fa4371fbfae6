r"""What stands behind a number and changes what it says: a unit ("5\text{ km}") and the base it is written in ("12_8")."""

from __future__ import annotations

import re
from fractions import Fraction

_TEXT = re.compile(
    r"\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mbox|hbox|rm)\s{0,9}\{[^{}\\]*+\}(?:\s?\^\s?\{?\s?-?\d\s?\}?|\{\^\d\})?"
)
_BETWEEN = re.compile(r"[\s/]{0,9}(?:\\cdot|\\times)?[\s/]{0,9}")  # units that are multiplied or divided
_OVER = re.compile(r"\\frac\s*\{\s*\\(?:text|mathrm)\{([^{}]*)\}\s*\}\s*\{\s*\\(?:text|mathrm)\{([^{}]*)\}((?:\^\{?\d\}?)?)\s*\}")
_FRACTION = r"(?:\d+\s*)?\\frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d)|\d+\s*/\s*\d+"
_NUMBER = rf"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+|{_FRACTION})(?:\s*\\(?:cdot|times)\s*10\^\{{-?\d+\}})?"
_BARE = re.compile(rf"(?P<value>{_NUMBER})(?P<space>(?:[\s~]|\\[ ,;:])*+)(?P<unit>[A-Za-z][A-Za-z\s/.^{{}}\d-]*)", re.ASCII)
_CURRENCY = re.compile(r"\\?([$€£¥])\s?(?=[-+]?[\d.])|(?<=\d)\s?([€£¥])")
_COMMAND = re.compile(r"\\[a-z]+\s*\{|\\[,;: ]|[\\{}~]")
_WORD = re.compile(r"[a-zµω]+|\^?-?\d+|[/%]", re.IGNORECASE)
# Short units that are read without \text: what else has one or two letters is a product of variables.
_SHORT = "m g s h l L N J W V K Hz kg mg km cm mm nm dm ml mL dl kW kJ ft in yd mi lb oz hr min sec mph kmh kph sq cc pm am"
# Words that take back, or give another number.
_DOUBT = (
    "or and not either maybe perhaps possibly probably but else if for when where unless otherwise versus vs nor then so mod "
    "zero one two three four five six seven eight nine ten eleven twelve hundred thousand million billion dozen half "
    "pi e i sqrt sin cos tan log ln exp inf infinity percent percentage pct x y z"
)
_MEASURES = "/ 2 3 -1 -2 m g s h l km cm mm kg mg ft in mi yd min deg"  # what is not only a word more
_BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_SHORTS, _DOUBTS, _MEASURED = (frozenset(words.split()) for words in (_SHORT, _DOUBT, _MEASURES))
_BASE_OF = {name: base for base, name in enumerate(_BASES.split(), 2)}
_SAME = {
    "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "usd": "dollar", "centimetre": "cm", "centimeter": "cm",
    "sq": "2", "square": "2", "squared": "2", "cubic": "3", "cubed": "3", "cu": "3", "metre": "m", "meter": "m",
    "kilometre": "km", "kilometer": "km", "millimetre": "mm", "millimeter": "mm", "foot": "ft", "feet": "ft",
    "inch": "in", "inches": "in", "mile": "mi", "yard": "yd", "gram": "g", "kilogram": "kg", "litre": "l", "liter": "l",
    "hour": "h", "hr": "h", "minute": "min", "second": "s", "sec": "s", "degree": "deg", "people": "person", "men": "man", "women": "woman",
}  # fmt: skip
_BASED = re.compile(r"(?<![\w.}\\])(?P<digits>\d[\dA-F]*(?:\.[\dA-F]+)?)\s*_\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\d)")
_NAMED = re.compile(r"(?:\\(?:text|mathrm)\s*\{)?\s*(?:base)?\s*\(?(\d{1,2}|[a-z]+)\)?\s*\}{0,2}", re.IGNORECASE)


def split(latex: str) -> tuple[str, str]:
    """A value and its unit in plain words, "" where it has none. What is no unit ("or 8", "maybe eight") stays with the value."""
    text = _OVER.sub(r"\\text{\1/\2\3}", latex)
    value, unit = _marked(text) if "{" in text else (text, "")
    if not unit and (found := _BARE.fullmatch(text)) is not None and _is_unit(found["unit"], found["space"] != ""):
        value, unit = found["value"], found["unit"]
    words = " ".join(_WORD.findall(_COMMAND.sub(" ", unit.replace(".", ""))))
    if not words or _DOUBTS & set(words.lower().split()):
        return latex, ""
    return (value.replace(unit, "") if "\\" in unit else value).strip(), words  # everywhere in "5\text{ m}, 3\text{ m}"


def _marked(text: str) -> tuple[str, str]:
    r"""A value and the \text{} behind it, "" where there is none."""
    start = end = len(text.rstrip())
    for found in reversed(list(_TEXT.finditer(text))):
        if found.end() != end and (start == end or not _BETWEEN.fullmatch(text, found.end(), start)):
            break
        start = found.start()
    value = text[:start].rstrip(" ~\\,;")
    return (value, text[start:end]) if value and (value[-1].isalnum() or value[-1] in ")]}%") else (text, "")


def currency(latex: str) -> str:
    """The word for the currency sign at an amount, "" where there is none or more than one kind."""
    signs = {one or other for one, other in _CURRENCY.findall(latex)}
    return _SAME[signs.pop()] if len(signs) == 1 else ""


def factor(said: str, expected: str) -> float | None:
    """By what a number in one unit is to be multiplied to be one in the other; None where these are different things.

    A unit that only one side names is no difference, and neither is a word more ("eggs left" for "eggs").
    """
    one, other = _words(said), _words(expected)
    if (one <= other or other <= one) and not (one and other and (one ^ other) & _MEASURED):
        return 1.0
    from rlft.rewards.quantity import conversion  # pint takes a second to load, and few answers come here

    return conversion(said, expected)


def plain_numerals(latex: str) -> str:
    r"""Numerals with a base in the subscript as what they are worth: 12_8 as 10. One with digits that its base lacks is made unreadable."""
    return _BASED.sub(_worth, latex) if "_" in latex else latex


def _worth(numeral: re.Match[str]) -> str:
    named = _NAMED.fullmatch(numeral[0].partition("_")[2].strip().removeprefix("{"))
    base = int(named[1]) if named and named[1].isdigit() else _BASE_OF.get(named[1].lower(), 0) if named else 0
    if base == 0 or (base not in (11, 12, 16) and not numeral["digits"].replace(".", "").isdigit()):
        return numeral[0]  # a subscript of another kind
    whole, _, part = numeral["digits"].partition(".")
    try:
        value = Fraction(int(whole + part, base), base ** len(part))
    except ValueError:
        return rf"{whole}\_{base}"
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _is_unit(words: str, spaced: bool) -> bool:
    """Whether bare letters behind a number are a unit, and not variables: "5 km" and "18 dollars a day", but not "5 x"."""
    first = re.split(r"[\s/.^{]", words, maxsplit=1)[0]
    return first in _SHORTS if len(first) <= 2 or not spaced else first.lower() not in _DOUBTS


def _words(unit: str) -> set[str]:
    words = (word.removeprefix("^") for word in unit.lower().split())
    return {_SAME.get(word, _SAME.get(word.removesuffix("s"), word.removesuffix("s") or word)) for word in words} - {"a", "of", "the"}
