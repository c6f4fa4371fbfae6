"""Test code that cannot be taken apart runs in a sandbox of its own, and asks for the tested functions' values.

The tests never meet the tested code in one process. They run with functions that know the values of the calls so far. A
call whose value is not known gives a guess, which equals everything; with what was asked up to the first thing that a guess cannot
do, the calls are made in the other sandbox, and the tests start anew with their values. A run without a guess says whether the
tests hold. So they have to be the same from run to run (`random` is seeded), and tested functions may take and return
plain data only, and a call that is made twice is asked once.
"""

from __future__ import annotations

import ast
from typing import Any

from rlft.errors import TaskError
from rlft.rewards.code_asserts import Unconverted
from rlft.sandbox.backends import Backend
from rlft.sandbox.types import Execution, Limits

MAX_CALLS = 1000  # of one piece of test code
AT_ONCE = 128  # calls asked for in one run
LABEL = "in-sandbox verdict"
TESTER = '''
import ast, builtins, copy, random, sys

if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)

class Enough(BaseException):
    """There is no use in going on without values."""

class Guess:
    """The value of a call that has not been made yet."""
    __hash__ = None
    def __eq__(self, other):
        return True
    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__

def guessed(value):
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return type(value) is Guess or isinstance(value, (list, tuple, set)) and any(map(guessed, value))

class Calls:
    def __init__(self, known, at_once):
        self.known = {repr(call): (returned, value) for call, returned, value in known}
        self.at_once, self.made, self.asked = at_once, set(), []

    def make(self, name, args, kwargs):
        if guessed((args, kwargs)):
            return Guess()
        call = [name, *copy.deepcopy((args, kwargs))]
        self.made.add(repr(call))
        if repr(call) not in self.known:
            self.asked.append(call)
            if len(self.asked) > self.at_once:
                raise Enough
            return Guess()
        returned, value = self.known[repr(call)]
        if returned:
            return copy.deepcopy(value)
        kind = getattr(builtins, value.partition(":")[0], None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError
        error = kind.__new__(kind)
        error.args = (value,)
        error.of_tested = True
        raise error

    def guessing(self):
        return bool(self.asked)

    def holds(self, test):
        try:
            return test() or self.guessing()
        except Exception:
            if self.guessing():
                return True
            raise

class Patient(ast.NodeTransformer):
    """`assert x` becomes `assert holds(lambda: x)`, which goes on where x is made of guesses."""

    def visit_Assert(self, node):
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        call = ast.Call(ast.Name("__holds__", ast.Load()), [ast.Lambda(nothing, node.test)], [])
        return ast.fix_missing_locations(ast.copy_location(ast.Assert(call, node.msg), node))

def verdict(source, functions, known, certain, at_once):
    random.seed(0)
    calls = Calls(known, at_once)
    scope = {"__name__": "tests", "__holds__": calls.holds}
    for name in functions:
        scope[name] = lambda *args, name=name, **kwargs: calls.make(name, args, kwargs)
    try:
        exec(compile(Patient().visit(ast.parse(source)), "tests", "exec"), scope)
        said = ("holds", "")
    except Enough:
        said = ("asks", "")
    except (ImportError, NameError, SyntaxError) as error:
        said = ("fails" if hasattr(error, "of_tested") else "broken", f"{type(error).__name__}: {error}")
    except Exception as error:
        said = ("fails", f"{type(error).__name__}: {error}")
    if certain and repr(certain) not in calls.made:
        return ("changes", "")
    return ("asks", calls.asked) if calls.asked else said
'''


async def replay(case: Unconverted, program: str, backend: Backend, limits: Limits, total_s: float) -> tuple[str, Execution]:
    """Why the test code fails ("" if it does not), and the last execution with the seconds of all, at most about `total_s`.

    Raises:
        TaskError: the test code itself is at fault.
    """
    if classes := [name for name in case.functions if name[:1].isupper()]:
        raise TaskError(f"code_tests: test code uses {classes[0]!r}: objects stay in their sandbox, only plain values leave it")
    if name := _used_for_effect(case):
        raise TaskError(f"code_tests: test code looks at what {name} does to its arguments: only values leave the sandbox")
    functions = [*case.functions, *case.lacks]
    known: list[list[Any]] = []
    certain: list[Any] = []  # a call that the tests make whatever the others return
    at_once, spent = AT_ONCE, 0.0
    while True:
        (tests,) = await backend.call(TESTER, [("verdict", (case.source, functions, known, certain, at_once), {})], limits=limits)
        spent += tests.wall_s
        ran = Execution(tests.status, error=tests.error, wall_s=spent)
        if tests.status != "ok" and at_once:  # a guess may have led astray
            at_once = 0
            continue
        if tests.status == "error":
            raise TaskError(f"code_tests: the test code does not run: {tests.error}")
        if tests.status != "ok":
            return f"{LABEL}: the tests ended with {tests.status}", ran
        said, what = tests.value
        if said in ("holds", "fails"):
            return ("" if said == "holds" else f"{LABEL}: {what}"), ran
        if said != "asks":
            raise TaskError(f"code_tests: the test code {'makes other calls each time' if said == 'changes' else f'is broken: {what}'}")
        asked, certain = list({repr(call): call for call in what}.values()), what[0]
        if len(known) >= MAX_CALLS:
            raise TaskError(f"code_tests: the test code makes more than {MAX_CALLS} calls")
        calls = await backend.call(program, asked, limits=limits)
        spent += sum(call.wall_s for call in calls)
        if missing := [q[0] for q, call in zip(asked, calls, strict=True) if q[0] in case.lacks and "defines no" in call.error]:
            raise TaskError(f"code_tests: the test code is broken: {missing[0]!r} is defined neither by the task nor by the program")
        first = calls[0]
        if first.status not in ("ok", "error"):
            text = f"{LABEL}: {asked[0][0]} ended with {first.status}: {first.error}"
            return text, Execution(first.status, first.stdout, first.stderr, wall_s=spent)
        if spent > total_s:
            return f"{LABEL}: the calls took more than {total_s:.3g} s together", Execution("timeout", wall_s=spent)
        for question, call in zip(asked, calls, strict=True):
            if call.status not in ("ok", "error") or call.error.startswith("not called"):
                break  # it is asked for again, if it is one that the tests make, and gets a process to itself
            known.append([question, call.status == "ok", call.value if call.status == "ok" else call.error])


def _used_for_effect(case: Unconverted) -> str:
    """A tested function that is called as a statement on a variable which is used afterwards; "" if there is none."""
    tree = ast.parse(case.source)
    last = {node.id: node.lineno for node in sorted((n for n in ast.walk(tree) if isinstance(n, ast.Name)), key=lambda n: n.lineno)}
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Call(ast.Name(name), args)) if name in case.functions:
                if any(isinstance(arg, ast.Name) and last[arg.id] > (node.end_lineno or 0) for arg in args):
                    return name
    return ""
