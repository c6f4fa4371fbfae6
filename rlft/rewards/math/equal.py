"""Whether two answers are the same mathematics: equal text, equal integers, else math-verify.

Nothing here has a deadline: it runs in processes that can be killed (math-verify's own deadlines are
alarms, which work in the main thread only and do not stop C code, so they are off).
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from math_verify import verify
from math_verify.parser import parse_latex_cached

_NORMAL = NormalizationConfig(basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none")
_INTEGER = re.compile(r"[-+]?\d{1,500}", re.ASCII)
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(?:[ ,]\d{3}|\{,\}\d{3}|\\[,;: ]\s?\d{3})+(?:\.\d+)?", re.ASCII)
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)[eE]\+?(-?\d+)(?![\w.])", re.ASCII)
_STARS = re.compile(r"\s*\*\*\s*(-?\d+|\(-?\d+\))?")
_SIGNED_POWER = re.compile(r"\^\s*(-\d+)", re.ASCII)
_CURRENCY = re.compile(r"\\?[$€£¥]\s?(?=[-+]?[\d.])|(?<=\d)\s?[€£¥]")
_UNICODE = {
    "\u2212": "-", "\u2013": "-", "\u2009": " ", "\u202f": " ", "\u00a0": " ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ", "⁰": "^{0}", "¹": "^{1}", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}",
}  # fmt: skip
_ROOT = re.compile(r"√\s*(\d+|[A-Za-z]|\((?:[^()]*)\))")
_SIZES = re.compile(r"\\(?:m?left|m?right|[bB]igg?[lr]?)(?![A-Za-z])|\\!\s*|\\[,;:](?!\s?\d)|\\displaystyle(?![A-Za-z])")
_UPRIGHT = re.compile(r"\\(?:mathrm|mathit|mathbf|operatorname|text)\{([a-z])\}")
_PLUS_MINUS = re.compile(r"(^|[=({\[,])?\s*\\(?:pm|mp)(?![A-Za-z])")
_SPACES = re.compile(r"(?<!\w) | (?!\w)")


def tidy(latex: str) -> str:
    """LaTeX with what means the same written the same way: Unicode signs, spacing, sizes, 1,000 and 6e23."""
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1].strip('()')}}}", latex.translate(str.maketrans(_UNICODE)))
    text = _SIZES.sub("", text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))
    text = _UPRIGHT.sub(r"\1 ", text)
    text = " ".join(_CURRENCY.sub("", text).split())
    if _GROUPED.fullmatch(text):
        text = re.sub(r"[^-+\d.]", "", text)
    text = _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
    text = _STARS.sub(lambda power: f"^{{{power[1].strip('()')}}}" if power[1] else "^", text)
    return ", ".join(_both_signs(_SIGNED_POWER.sub(r"^{\1}", text)))


def _both_signs(text: str) -> list[str]:
    r"""The elements of a list with each a \pm b written as a + b, a - b. More than one sign in an element leaves it."""
    if not _PLUS_MINUS.search(text):
        return [text]
    elements, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth == 0:
            elements.append("")
        else:
            elements[-1] += character
    signed = []
    for element in map(str.strip, elements):
        if len(_PLUS_MINUS.findall(element)) == 1:
            signed.append(_PLUS_MINUS.sub(lambda sign: sign[1] if sign[1] is not None else "+", element))
            signed.append(_PLUS_MINUS.sub(lambda sign: (sign[1] or "") + "-", element))
        else:
            signed.append(element)
    return signed


def same_text(answer: str, gold: str) -> bool | None:
    """Whether two tidied answers are written the same; None where only computing tells."""
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    return _SPACES.sub("", answer) == _SPACES.sub("", gold) or None


def parse(latex: str) -> list[Any]:
    """Tidied LaTeX as [its expression where it can be read as one, its normalised text]. Raises MemoryError."""
    normal = normalize_latex(latex, _NORMAL)
    try:
        expression = parse_latex_cached(normal)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # what the grammar raises: no mathematics, which the missing expression says
        return [normal]
    return [expression, normal]


parse_gold = lru_cache(maxsize=4096)(parse)  # the trajectories of a group share it


def same_value(answer: list[Any], gold: list[Any], *, float_rounding: int, strict: bool, allow_set_relation_comp: bool) -> bool:
    """Whether any reading of an answer equals any of the gold's, by math-verify.

    Raises:
        Exception: whatever sympy raises where it cannot compare two expressions.
    """
    return any(
        verify(
            right,
            said,
            float_rounding=float_rounding,
            strict=strict,
            allow_set_relation_comp=allow_set_relation_comp,
            timeout_seconds=None,
            raise_on_error=True,
        )
        for right, said in product(filter(_comparable, gold), filter(_comparable, answer))
    )


def _comparable(reading: Any) -> bool:
    """Division by zero ("12:00") and nan equal nothing; such an answer is compared as text."""
    return reading not in (sympy.zoo, sympy.nan) if isinstance(reading, sympy.Basic) else True
