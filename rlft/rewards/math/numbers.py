"""Whether two closed expressions are the same number: exactly where both are exact, else relative to their size."""

from __future__ import annotations

from typing import Any

import sympy

PRECISION = 40  # decimal digits to which exact numbers are computed
SAME = sympy.Float("1e-30", PRECISION)  # relative difference below which two exact numbers are one
_PERCENT = sympy.UnevaluatedExpr(sympy.Rational(1, 100))


def with_imaginary(expression: Any) -> Any:
    """An expression in which a free letter i is the imaginary unit, but for one with words, which are read as products of letters."""
    letters = [letter for letter in getattr(expression, "free_symbols", ()) if letter.name == "i"]
    if not letters or any(map(_is_word, sympy.preorder_traversal(expression))):
        return expression
    return expression.subs({letter: sympy.I for letter in letters})


def _is_word(product: Any) -> bool:
    letters = [factor for factor in getattr(product, "args", ()) if isinstance(factor, sympy.Symbol) or factor == sympy.E]
    return isinstance(product, sympy.Mul) and len(letters) == len(product.args) > 2


def is_number(expression: Any) -> bool:
    """Whether an expression is closed: one number, complex or infinite ones included."""
    return isinstance(expression, sympy.Expr) and not isinstance(expression, sympy.MatrixExpr) and bool(expression.is_number)


def same_number(said: Any, gold: Any, digits: int) -> bool:
    """Whether two closed expressions are one number. 9% is also 9: which of the two was asked for, the question says.

    Decimals are given to as many digits as they have, so where one is met two numbers are the same if they differ
    by at most 10^-digits of the larger. Of two that are plainly written, without an operation, the difference has also to be at most half
    of the last of `digits` decimals: 1000000.5 is not 1000000. Numbers without a decimal are compared exactly.
    """
    if _same(said, gold, digits):
        return True
    bare = _less_percent(said), _less_percent(gold)
    return bare != (said, gold) and _same(*bare, digits)


def terminates(expression: Any) -> bool:
    """Whether a number is written, or can be, as a decimal that ends: 7, 1/8 and 0.25 do, 1/3 and pi do not."""
    value = _exact(expression)
    if not isinstance(value, sympy.Rational):
        return False
    rest = value.q
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def near(one: Any, other: Any, share: float) -> bool:
    """Whether two closed expressions differ by at most a share of the larger."""
    a, b = (_value(_exact(number)) for number in (one, other))
    return a is not None and b is not None and bool(abs(a - b) <= share * max(abs(a), abs(b)))


def _same(said: Any, gold: Any, digits: int) -> bool:
    plain = said.is_Number and gold.is_Number
    inexact = said.has(sympy.Float) or gold.has(sympy.Float)
    a, b = _exact(said), _exact(gold)
    if a == b:
        return True
    if not inexact and a.is_Rational and b.is_Rational:
        return False
    a, b = _value(a), _value(b)
    if a is None or b is None:
        return False
    difference, size = abs(a - b), max(abs(a), abs(b))
    if not inexact:
        return bool(difference <= SAME * size)
    if plain and difference > sympy.Rational(1, 2 * 10**digits):
        return False
    return bool(difference * 10**digits <= size * (1 + SAME))


def _exact(number: Any) -> Any:
    """The number computed as far as that goes, each of its decimals as the fraction that was written."""
    floats = number.atoms(sympy.Float)
    exact = number.xreplace({decimal: sympy.Rational(str(decimal)) for decimal in floats}) if floats else number
    return exact if exact.is_Rational else exact.doit()


def _value(number: Any) -> Any:
    """A finite number to PRECISION digits, None where there is none."""
    found = number if number.is_Rational else number.evalf(PRECISION)
    parts = found.as_real_imag()
    return found if all(part.is_Number and part.is_finite for part in parts) else None


def _less_percent(number: Any) -> Any:
    return number.args[0] if isinstance(number, sympy.Mul) and len(number.args) == 2 and number.args[1] == _PERCENT else number
