"""Asserts taken apart: calls that run in the sandbox, and what is asserted of their values, which is evaluated outside of it.

`assert f([1]) == 2` becomes the call f([1]) and a comparison with 2. The few operations that may stand around a
call (`abs(f(1) - 0.5) < 1e-6`, `sorted(f(x)) == [1]`, `not f(x)`, `f(x)[0]`, `"%s" % f(x)`) work on plain data. Anything more is
not converted, and a value that would take long to compute with is left to a sandbox as well.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.rewards.code_values import Comparison, same_value

FunctionCall = tuple[str, tuple[Any, ...], dict[str, Any]]
PURE: dict[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (abs, all, any, bool, dict, float, int, len, list, max, min, round, set, sorted, str, sum, tuple)},
    **{f"math.{name}": getattr(math, name) for name in ("isclose", "fabs", "floor", "ceil", "sqrt", "isnan", "isinf")},
}
ON_CONSTANTS = {**PURE, "range": range, "frozenset": frozenset}  # the task's own constants may be built with these too
CONSTANTS = {"math.pi": math.pi, "math.e": math.e, "math.inf": math.inf, "math.nan": math.nan}
ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.NotEq: operator.ne}
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
MAX_ITEMS = 1 << 20  # of a text or list that is repeated, outside of the sandbox
MAX_BITS = 1 << 16  # of an int that is multiplied or divided
MAX_FORMAT = 4096  # characters of the left side of %
UNDECIDED = "its value is larger than is computed with outside of the sandbox"
UNARY = {ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}


class CannotConvert(ValueError):
    """The expression has more in it than is evaluated outside of the sandbox."""


class _TooLarge(Exception):
    """What the tested code returned makes an operation long, or its result large."""


@dataclass(frozen=True)
class Assertion:
    """One assert: the calls that it makes, and `test`, what is asserted, with the k-th call written as `_[k]`."""

    source: str
    calls: tuple[FunctionCall, ...]
    test: ast.expr
    again: Unconverted  # the same as test code, for what is not decided here

    def objection(self, values: Sequence[Any], how: Comparison) -> str:
        """Why the assert does not hold for what its calls returned (plain data); "" if it holds, UNDECIDED if that is not told here."""
        try:
            return "" if _evaluate(self.test, values, how) else "the assertion is false"
        except _TooLarge:
            return UNDECIDED
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
            return f"the value cannot be used as the assertion uses it ({type(error).__name__})"


@dataclass(frozen=True)
class Unconverted:
    """Test code that is no such assert.

    `functions`: names in it that the tested code has to define. `lacks`: other names in it that it does not define itself.
    """

    source: str
    functions: tuple[str, ...]
    lacks: tuple[str, ...] = ()


def read_asserts(texts: Sequence[str], function: str = "") -> Iterator[Assertion | Unconverted]:
    """The asserts of test code in Python; imports go with each, asserts without a call are left out.

    Args:
        texts: statements; or a function `check(candidate)` that makes the asserts.
        function: what `candidate` stands for; "" if the text ends with `check(name)`.

    Raises:
        SyntaxError, ValueError: the text is not Python, or does not say which function is tested.
    """
    for text in texts:
        body = ast.parse(text).body
        imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        check = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == "check"), None)
        if check is not None:
            yield from _check_function(text, check, imports, function or _checked(body))
            continue
        asserts = [node for node in body if isinstance(node, ast.Assert)]
        if len(asserts) + len(imports) < len(body):
            yield _unconverted(text)
            continue
        for node in asserts:
            yield from _convert(node, imports, function)


def _check_function(text: str, check: ast.FunctionDef, imports: list[Any], function: str) -> Iterator[Assertion | Unconverted]:
    if not function or len(check.args.args) != 1:
        raise ValueError("check(candidate): which function is tested stands neither in meta['entry_point'] nor in a last line check(name)")
    parameter = check.args.args[0].arg
    body = [node for node in check.body if not (isinstance(node, ast.Pass) or _has_no_effect(node))]
    asserts = [node for node in body if isinstance(node, ast.Assert)]
    if len(asserts) < len(body):
        called = [node for node in ast.parse(text).body if not _is_call_of_check(node)]
        yield _unconverted(f"{_unparse(called)}\ncheck({function})", function)
        return
    for node in asserts:
        yield from _convert(_Rename(parameter, function).visit(node), imports, function)


def _convert(node: ast.Assert, imports: list[Any], function: str) -> Iterator[Assertion | Unconverted]:
    calls: list[FunctionCall] = []
    tested = _tested(node.test, function)
    again = _unconverted(_unparse([*imports, node]), *tested)
    try:
        test = _lift(node.test, tested, calls)
    except CannotConvert:
        yield again
    else:
        if calls:
            yield Assertion(ast.unparse(node), tuple(calls), test, again)


def _unconverted(source: str, *functions: str) -> Unconverted:
    """Names that are defined nowhere are tested functions, but for modules not imported; where the tested ones are given, helpers."""
    tree = ast.parse(source)
    modules = {node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    undefined = tuple(name for name in _undefined(tree) if name not in modules)
    if not functions:
        return Unconverted(source, undefined)
    return Unconverted(source, tuple(sorted(functions)), tuple(name for name in undefined if name not in functions))


def _tested(test: ast.expr, function: str) -> frozenset[str]:
    """Names whose calls go to the tested code: those that are no builtins; else the first that is called (`sum` may be the task)."""
    names = [node.func.id for node in ast.walk(test) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    own = [name for name in names if name == function or not hasattr(builtins, name)]
    return frozenset(own or names[:1])


def _lift(node: ast.expr, tested: frozenset[str], calls: list[FunctionCall]) -> ast.expr:
    """The expression with its constant parts evaluated and its calls of tested functions moved to `calls`. Raises CannotConvert."""

    def lift(child: ast.expr) -> ast.expr:
        return _lift(child, tested, calls)

    if not any(_function_of(inner, tested) for inner in ast.walk(node)):
        return ast.Constant(_constant(node))
    if name := _function_of(node, tested):
        assert isinstance(node, ast.Call)
        args = tuple(_argument(value, tested) for value in node.args)
        kwargs = {keyword.arg or "": _argument(keyword.value, tested) for keyword in node.keywords}
        if "" in kwargs:
            raise CannotConvert("a call with **")
        calls.append((name, args, kwargs))
        return ast.Subscript(ast.Name("_"), ast.Constant(len(calls) - 1))
    match node:
        case ast.Call() if _dotted(node.func) in PURE:
            keywords = [ast.keyword(keyword.arg, lift(keyword.value)) for keyword in node.keywords if keyword.arg]
            if len(keywords) == len(node.keywords):
                return ast.Call(node.func, [lift(value) for value in node.args], keywords)
        case ast.Compare():
            comparators = [lift(value) for value in node.comparators]
            for op, value in zip(node.ops, comparators, strict=True):
                if isinstance(op, (ast.Is, ast.IsNot)) and not (isinstance(value, ast.Constant) and value.value in (None, True, False)):
                    raise CannotConvert("identity of values")
            return ast.Compare(lift(node.left), node.ops, comparators)
        case ast.BoolOp():
            return ast.BoolOp(node.op, [lift(value) for value in node.values])
        case ast.UnaryOp() if type(node.op) in UNARY:
            return ast.UnaryOp(node.op, lift(node.operand))
        case ast.BinOp() if type(node.op) in ARITHMETIC and not isinstance(node.op, ast.Pow):
            return ast.BinOp(lift(node.left), node.op, lift(node.right))
        case ast.Subscript() if not any(_function_of(inner, tested) for inner in ast.walk(node.slice)):
            return ast.Subscript(lift(node.value), ast.Constant(_constant(node.slice)))
        case ast.List() | ast.Tuple():
            return type(node)([lift(value) for value in node.elts])
    raise CannotConvert(ast.unparse(node))


def _function_of(node: ast.AST, tested: frozenset[str]) -> str:
    """"f" for a call f(...), "C.f" for a call C().f(...) of tested code; "" for anything else."""
    match node:
        case ast.Call(ast.Name(name)) if name in tested:
            return "" if name[:1].isupper() and not node.args and not node.keywords else name
        case ast.Call(ast.Attribute(ast.Call(ast.Name(name), [], []), method)) if name in tested:
            return f"{name}.{method}"
    return ""


def _argument(node: ast.expr, tested: frozenset[str]) -> Any:
    if any(_function_of(inner, tested) for inner in ast.walk(node)):
        raise CannotConvert("a call within a call")
    return _constant(node)


def _constant(node: ast.expr) -> Any:
    try:
        return _evaluate(node, (), Comparison(), ON_CONSTANTS)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CannotConvert(f"{ast.unparse(node)}: {error}") from error


def _evaluate(node: ast.expr, values: Sequence[Any], how: Comparison, functions: Mapping[str, Callable[..., Any]] = PURE) -> Any:
    """The value of an expression of constants, `_[k]`, pure functions and operators. Raises CannotConvert for others."""

    def value_of(child: ast.expr) -> Any:
        return _evaluate(child, values, how, functions)

    match node:
        case ast.Constant():
            return node.value
        case ast.Subscript(ast.Name("_"), ast.Constant(int(index))):
            return values[index]
        case ast.Subscript():
            return value_of(node.value)[value_of(node.slice)]
        case ast.Slice():
            return slice(*(part and value_of(part) for part in (node.lower, node.upper, node.step)))
        case ast.List() | ast.Tuple() | ast.Set():
            items = [value_of(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items) if isinstance(node, ast.Tuple) else set(items)
        case ast.Dict() if all(node.keys):
            return {value_of(key): value_of(value) for key, value in zip(node.keys, node.values, strict=True) if key}
        case ast.UnaryOp() if type(node.op) in UNARY:
            return UNARY[type(node.op)](value_of(node.operand))
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            return _arithmetic(node.op, value_of(node.left), value_of(node.right), functions is PURE)
        case ast.BoolOp():
            return (all if isinstance(node.op, ast.And) else any)(value_of(value) for value in node.values)
        case ast.Compare():
            operands = [value_of(value) for value in (node.left, *node.comparators)]
            return all(_compare(op, a, b, how) for op, a, b in zip(node.ops, operands, operands[1:], strict=False))
        case ast.Call() if (name := _dotted(node.func)) in functions and all(keyword.arg for keyword in node.keywords):
            keywords = {str(keyword.arg): value_of(keyword.value) for keyword in node.keywords}
            return _called(name, functions, [value_of(value) for value in node.args], keywords)
        case ast.Attribute() if (name := _dotted(node)) in CONSTANTS:
            return CONSTANTS[name]
    raise CannotConvert(ast.unparse(node))


def _compare(op: ast.cmpop, a: Any, b: Any, how: Comparison) -> bool:
    match op:
        case ast.Eq():
            return same_value(a, b, how)
        case ast.Is() | ast.IsNot():
            return (a is b) == isinstance(op, ast.Is)
        case ast.In() | ast.NotIn():
            return (a in b) == isinstance(op, ast.In)
    return bool(ORDER[type(op)](a, b))


def _arithmetic(op: ast.operator, a: Any, b: Any, of_found_values: bool) -> Any:
    if of_found_values and _is_large(op, a, b):
        raise _TooLarge
    try:
        return ARITHMETIC[type(op)](a, b)
    except ValueError as error:
        if of_found_values and isinstance(op, ast.Mod):  # digits beyond what is written out
            raise _TooLarge from error
        raise


def _is_large(op: ast.operator, a: Any, b: Any) -> bool:
    """Whether the result, or the way to it, may be large: the operands are of no more than a value's size each."""
    if isinstance(op, ast.Mult) and isinstance(a, (str, list, tuple)) + isinstance(b, (str, list, tuple)) == 1:
        items, times = (len(a), b) if isinstance(a, (str, list, tuple)) else (len(b), a)
        return isinstance(times, int) and items * times > MAX_ITEMS
    if isinstance(op, ast.Mod) and isinstance(a, str):
        return len(a) > MAX_FORMAT or re.search(r"\*|\d{4}", a) is not None
    numbers = [value for value in (a, b) if isinstance(value, int)]
    return not isinstance(op, (ast.Add, ast.Sub)) and any(value.bit_length() > MAX_BITS for value in numbers)


def _called(name: str, functions: Mapping[str, Callable[..., Any]], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """A pure function's value. What Python writes out or reads only up to some number of digits is too large here."""
    digits = [value for value in [*args[1:], *keywords.values()] if name == "round" and isinstance(value, int)]
    if functions is PURE and any(abs(value) > MAX_FORMAT for value in digits):
        raise _TooLarge
    try:
        return functions[name](*args, **keywords)
    except ValueError as error:
        if functions is PURE and name in ("str", "int"):
            raise _TooLarge from error
        raise


def _dotted(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def _undefined(tree: ast.AST) -> tuple[str, ...]:
    """Names that code uses and does not define."""
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return tuple(dict.fromkeys(node.id for node in names if node.id not in bound and not hasattr(builtins, node.id)))


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new if node.id == self.old else node.id, node.ctx)


def _checked(body: list[ast.stmt]) -> str:
    return next((ast.unparse(node.value.args[0]) for node in body if _is_call_of_check(node)), "")  # type: ignore[attr-defined]


def _is_call_of_check(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _dotted(node.value.func) == "check" and bool(node.value.args)


def _has_no_effect(node: ast.stmt) -> bool:
    """A docstring, or a bare name, as in HumanEval/129."""
    return isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Name))


def _unparse(nodes: Sequence[ast.stmt]) -> str:
    return "\n".join(map(ast.unparse, nodes))
