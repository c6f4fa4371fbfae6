r"""What is not worth computing, seen without computing it: towers of powers, huge factorials, endless sums.

One pass over the LaTeX bounds every number from above by its order of magnitude, log10. The bound is
crude: of a sum or a quotient it takes the product, of letters 1. It refuses what would take the time; what
passes it anyway meets the deadline of the grading process.
"""

from __future__ import annotations

import math
import re

MAX_DEPTH = 40  # brackets within brackets
MAX_POWERS = 2  # powers within exponents: 2^{2^3} has two
MAX_DIGITS = 500  # of a written number
MAX_ORDER = 1e5  # digits of a power's value
MAX_EXPONENT = MAX_FACTORIAL = MAX_RANGE = 1e4
MAX_BINOMIAL = 1e5
MAX_ELEMENTS = 100  # of a list or set

_TOKEN = re.compile(r"\d+(?:\{?,\}?\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+(?![\w.]))?|\\[A-Za-z]+|\\.|\*\*|\S", re.DOTALL)
_OPENING = {"{": 1, "(": 1, "[": 1, r"\{": 1, r"\lfloor": 1, r"\lceil": 1, r"\langle": 1}
_CLOSING = {"}": -1, ")": -1, "]": -1, r"\}": -1, r"\rfloor": -1, r"\rceil": -1, r"\rangle": -1}
_PREFIXES = re.compile(rf"(?:(?:\\[A-Za-z]+|[-+])\s*){{{MAX_DEPTH + 1}}}")
_BINOMIALS = {r"\binom", r"\dbinom", r"\tbinom"}
_RANGES = {r"\sum", r"\prod", r"\int", r"\bigcup", r"\bigcap"}
_SIZES = {r"\left", r"\right", r"\mleft", r"\mright", r"\big", r"\Big", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr"}


class Unsupported(Exception):
    """An answer is beyond the caps."""


def check(latex: str) -> None:
    """Pass if the answer is worth computing.

    Raises:
        Unsupported: it is not; the message says which cap it breaks.
    """
    tokens = [token for token in _TOKEN.findall(latex) if token not in _SIZES]
    depth = deepest = 0
    for token in tokens:
        depth += _OPENING.get(token, 0) + _CLOSING.get(token, 0)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or _PREFIXES.search(latex):
        raise Unsupported(f"nested more than {MAX_DEPTH} deep")
    if tokens.count(",") + tokens.count(";") >= MAX_ELEMENTS:
        raise Unsupported(f"a list of more than {MAX_ELEMENTS} elements")
    _Bound(tokens).sequence(powers=0)


class _Bound:
    """A walk over tokens that bounds, in log10, the value of each thing it passes."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._at = tokens, 0

    def sequence(self, powers: int, closed: bool = False) -> float:
        """Everything up to the end, or up to the closing bracket: the product of its parts."""
        order = 0.0
        while self._at < len(self._tokens):
            if self._peek() in _CLOSING:
                if closed:
                    return order
                self._at += 1
            else:
                order += self._part(powers)
        return order

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _part(self, powers: int) -> float:
        """One thing with the exponents, factorials and indices that follow it."""
        order = self._atom(powers)
        while True:
            if self._peek() in ("^", "**"):
                self._at += 1
                order = _power(order, self._exponent(powers + 1))
            elif self._peek() == "!":
                self._at += 1
                order = _factorial(order, "a factorial")
            elif self._peek() == "_":
                self._at += 1
                self._atom(powers)
            else:
                return order

    def _exponent(self, powers: int) -> float:
        if powers > MAX_POWERS:
            raise Unsupported(f"more than {MAX_POWERS} powers in one another")
        while self._peek() in ("-", "+"):
            self._at += 1
        return self._part(powers)

    def _atom(self, powers: int) -> float:
        token = self._next()
        if token in _OPENING:
            order = self.sequence(powers, closed=True)
            self._at += 1
            return order
        if token[:1].isdigit():
            return _number(token)
        if token in _BINOMIALS:
            above, below = self._atom(powers), self._atom(powers)
            if max(above, below) > math.log10(MAX_BINOMIAL):
                raise Unsupported(f"a binomial of more than {MAX_BINOMIAL:g}")
            return 10**above * math.log10(2)
        if token == r"\Gamma" and self._peek() in _OPENING:
            return _factorial(self._atom(powers), "the gamma function")
        if token in _RANGES:
            self._range(powers, token)
        return 0.0

    def _range(self, powers: int, name: str) -> None:
        while self._peek() in ("_", "^"):
            self._at += 1
            while self._peek() in ("-", "+"):
                self._at += 1
            if self._atom(powers) > math.log10(MAX_RANGE):
                raise Unsupported(f"a {name[1:]} over a range of more than {MAX_RANGE:g}")


def _number(literal: str) -> float:
    digits, _, exponent = literal.lower().partition("e")
    whole = re.sub(r"[^\d]", "", digits.partition(".")[0]).lstrip("0")
    if len(re.sub(r"[^\d]", "", digits)) > MAX_DIGITS:
        raise Unsupported(f"a number of more than {MAX_DIGITS} digits")
    if len(exponent) > 9 or abs(int(exponent or 0)) > MAX_EXPONENT:
        raise Unsupported(f"a number beyond 10^{MAX_EXPONENT:g}")
    return (math.log10(int(whole)) if whole else 0.0) + max(0, int(exponent or 0))


def _power(base: float, exponent: float) -> float:
    if exponent > math.log10(MAX_EXPONENT):
        raise Unsupported(f"an exponent of more than {MAX_EXPONENT:g}")
    if (order := base * 10**exponent) > MAX_ORDER:
        raise Unsupported(f"a power of more than {MAX_ORDER:g} digits")
    return order


def _factorial(order: float, what: str) -> float:
    if order > math.log10(MAX_FACTORIAL):
        raise Unsupported(f"{what} of more than {MAX_FACTORIAL:g}")
    return math.lgamma(10**order + 1) / math.log(10)
