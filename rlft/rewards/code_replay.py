"""Test code that cannot be taken apart runs in a sandbox of its own, and asks for the tested functions' values one by one.

The tests never meet the tested code in one process. They run with functions that know the values of the calls so far; at
a new call they stop, the call is made in the other sandbox, and the tests start anew with its value. So they have to be the
same from run to run, and tested functions may take and return plain data only.
"""

from __future__ import annotations

from typing import Any

from rlft.errors import TaskError
from rlft.rewards.code_asserts import Unconverted
from rlft.sandbox.backends import Backend
from rlft.sandbox.types import Execution, Limits

MAX_CALLS = 100  # of one piece of test code
LABEL = "in-sandbox verdict"
TESTER = '''
import builtins

class Wanted(BaseException):
    """The tests make a call whose value is not known yet."""

def of_tested(name, known, asked):
    def tested(*args, **kwargs):
        call = [name, args, kwargs]
        asked.append(call)
        if len(asked) > len(known):
            raise Wanted
        before, returned, value = known[len(asked) - 1]
        if repr(before) != repr(call):
            raise Wanted
        if returned:
            return value
        kind = getattr(builtins, value.partition(":")[0], None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError
        error = kind.__new__(kind)
        error.args = (value,)
        error.of_tested = True
        raise error
    return tested

def verdict(source, functions, known):
    asked = []
    scope = {"__name__": "tests", **{name: of_tested(name, known, asked) for name in functions}}
    try:
        exec(compile(source, "tests", "exec"), scope)
    except Wanted:
        return ("asks" if len(asked) > len(known) else "changes", asked[-1])
    except (ImportError, NameError, SyntaxError) as error:
        return ("fails" if hasattr(error, "of_tested") else "broken", f"{type(error).__name__}: {error}")
    except Exception as error:
        return ("fails", f"{type(error).__name__}: {error}")
    return ("holds", "")
'''


async def replay(case: Unconverted, program: str, backend: Backend, limits: Limits, total_s: float) -> tuple[str, Execution]:
    """Why the test code fails ("" if it does not), and the last execution with the seconds of all, at most about `total_s`.

    Raises:
        TaskError: the test code itself is at fault.
    """
    if classes := [name for name in case.functions if name[:1].isupper()]:
        raise TaskError(f"code_tests: test code uses {classes[0]!r}: objects stay in their sandbox, only plain values leave it")
    known: list[list[Any]] = []
    spent = 0.0
    while True:
        (tests,) = await backend.call(TESTER, [("verdict", (case.source, list(case.functions), known), {})], limits=limits)
        spent += tests.wall_s
        ran = Execution(tests.status, error=tests.error, wall_s=spent)
        if tests.status == "error":
            raise TaskError(f"code_tests: the test code does not run: {tests.error}")
        if tests.status != "ok":
            return f"{LABEL}: the tests ended with {tests.status}", ran
        said, what = tests.value
        if said in ("holds", "fails"):
            return ("" if said == "holds" else f"{LABEL}: {what}"), ran
        if said != "asks":
            raise TaskError(f"code_tests: the test code {'makes other calls each time' if said == 'changes' else f'is broken: {what}'}")
        if len(known) >= MAX_CALLS:
            raise TaskError(f"code_tests: the test code makes more than {MAX_CALLS} calls")
        name, args, kwargs = what
        (call,) = await backend.call(program, [(name, args, kwargs)], limits=limits)
        spent += call.wall_s
        if call.status not in ("ok", "error"):
            return f"{LABEL}: {name} ended with {call.status}: {call.error}", Execution(call.status, call.stdout, call.stderr, wall_s=spent)
        if spent > total_s:
            return f"{LABEL}: the calls took more than {total_s:.3g} s together", Execution("timeout", wall_s=spent)
        known.append([what, call.status == "ok", call.value if call.status == "ok" else call.error])
