r"""LaTeX with what means the same written the same way: signs, spacing, 1,000 and 6e23, repeating decimals, mixed numbers.

String functions whose time is linear in the text; an answer has at most `extract.MAX_LENGTH` characters.
"""

from __future__ import annotations

import re

_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(?:[ ,]\d{3}|\{,\}\d{3}|\\[,;: ]\s?\d{3})+(?:\.\d+)?", re.ASCII)
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)[eE]\+?(-?\d+)(?![\w.])", re.ASCII)
_STARS = re.compile(r"\s*\*\*\s*(-?\d+|\(-?\d+\))?")
_SIGNED_POWER = re.compile(r"\^\s*(-\d+)", re.ASCII)
_CURRENCY = re.compile(r"\\?[$€£¥]\s?(?=[-+]?[\d.])|(?<=\d)\s?[€£¥]")
_UNICODE = {
    "\u2212": "-", "\u2013": "-", "\u2009": " ", "\u202f": " ", "\u00a0": " ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ", "⁰": "^{0}", "¹": "^{1}", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⟨": r"\langle ", "⟩": r"\rangle ", "≈": r"\approx ", "π": r"\pi ", "∨": r"\lor ",
}  # fmt: skip
_ROOT = re.compile(r"√\s*(\d+|[A-Za-z]|\((?:[^()]*)\))")
_SIZES = re.compile(r"\\(?:m?left|m?right|[bB]igg?[lr]?)(?![A-Za-z])|\\!\s*|\\[,;:](?!\s?\d)|\\displaystyle(?![A-Za-z])")
_UPRIGHT = re.compile(r"\\(?:mathrm|mathit|mathbf|operatorname|text)\{([a-fi-kn-rt-z])\}")  # but for m, s, g, h and l, which may be units
_PLUS_MINUS = re.compile(r"(^|[=({\[,])?\s*\\(?:pm|mp)(?![A-Za-z])")
_ANGLES = re.compile(r"\\([lr])angle(?![A-Za-z])")
_ANGLED = re.compile(r"<([^<>=]*,[^<>=]*)>")
_SPOKEN = re.compile(r"\\(?:text|textrm|textbf|mathrm|mbox)\s*\{(\s*(?:or|and)\b[^{}]*|[^{}]*\d[^{}]*)\}")
_OR = re.compile(r"\\(?:lor|vee)(?![A-Za-z])")
_REPEATING = re.compile(r"(?<!\d)(\d++)\.(\d*)(?:\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\))", re.ASCII)
_DOT = r"\\dot\s*(?:\{\s*(\d)\s*\}|(\d))"
_DOTTED = re.compile(rf"(?<!\d)(\d++)\.(\d*){_DOT}(?:(\d*){_DOT})?", re.ASCII)
_MIXED = re.compile(r"(?<![\w.^/{}\\])(\d++)(?:\s|\\ |~|\\[,;:])+(\d+)\s*/\s*(\d+)(?![\d.])", re.ASCII)


def tidy(latex: str) -> str:
    """LaTeX with what means the same written the same way."""
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1].strip('()')}}}", latex.translate(str.maketrans(_UNICODE)))
    text = _SIZES.sub("", text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))
    text = _UPRIGHT.sub(r"\1 ", _OR.sub(" or ", _SPOKEN.sub(r" \1 ", text)))
    text = " ".join(_CURRENCY.sub("", text).split())
    if _GROUPED.fullmatch(text):
        text = re.sub(r"[^-+\d.]", "", text)
    text = _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
    text = _STARS.sub(lambda power: f"^{{{power[1].strip('()')}}}" if power[1] else "^", text)
    if "<" in text or "angle" in text:
        text = _ANGLED.sub(r"(\1)", _ANGLES.sub(lambda side: "(" if side[1] == "l" else ")", text))
    text = _MIXED.sub(_mixed, _DOTTED.sub(_dotted, _REPEATING.sub(_repeating, text)))
    return ", ".join(_both_signs(_SIGNED_POWER.sub(r"^{\1}", text)))


def _repeating(decimal: re.Match[str]) -> str:
    return _fraction(decimal[1], decimal[2], decimal[3] or decimal[4] or decimal[5])


def _dotted(decimal: re.Match[str]) -> str:
    """Dots stand over the first and the last digit of what repeats, or over the only one."""
    first, last = decimal[3] or decimal[4], decimal[6] or decimal[7] or ""
    return _fraction(decimal[1], decimal[2], first + (decimal[5] or "") + last)


def _fraction(whole: str, fixed: str, repeated: str) -> str:
    top = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{top}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def _mixed(number: re.Match[str]) -> str:
    """3 1/2 as 3\frac{1}{2}; 3 5/2 is none."""
    whole, top, bottom = number[1], number[2], number[3]
    proper = max(len(top), len(bottom)) <= 500 and int(top) < int(bottom)
    return rf"{whole}\frac{{{top}}}{{{bottom}}}" if proper else number[0]


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
