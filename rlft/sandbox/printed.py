"""Function calls where only a program's output comes back: a program that prints what its functions return, and its reader.

Code may print in the same way. It can then say something else than its functions return, but what it says
is a value all the same, never a verdict; the first word on each call counts.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlft.sandbox import calling, values
from rlft.sandbox.types import Execution

MARK = "\x02rlft "  # begins a line that is a value
PROGRAM = """
import json, os, sys, types
values, calling, solution = map(types.ModuleType, ("values", "calling", "solution"))
exec({values!r}, values.__dict__)
exec({calling!r}, calling.__dict__)
sys.modules["solution"] = solution
write = os.write

def say(*words):
    data = ({mark!r} + json.dumps(words) + chr(10)).encode()
    sys.stdout.flush()
    while data:
        data = data[write(1, data):]

def main(dumps=values.dumps, loads=values.loads, find=calling.resolve, scope=solution.__dict__, calls={calls!r}, code={code!r}):
    sys.setrecursionlimit(sys.getrecursionlimit() + 3)
    scope["__builtins__"] = __builtins__
    exec(compile(code.encode("utf-8", "surrogatepass"), "main.py", "exec", dont_inherit=True), scope)
    for number, (name, args, kwargs) in enumerate(loads(calls)):
        try:
            say(number, True, dumps(find(scope, name)(*args, **kwargs)))
        except BaseException as error:
            say(number, False, f"{{type(error).__name__}}: {{error}}"[:2000])

main()
"""


def program(code: str, calls: Sequence[tuple[str, Sequence[Any], Mapping[str, Any]]]) -> str:
    """A program that defines what `code` defines, makes the calls in order and prints what they return.

    Raises:
        ValueError: an argument is not plain data.
    """
    packed = values.dumps([(name, list(args), dict(kwargs)) for name, args, kwargs in calls])
    return PROGRAM.format(values=inspect.getsource(values), calling=inspect.getsource(calling), mark=MARK, calls=packed, code=code)


def read(execution: Execution, num_calls: int) -> list[Execution]:
    """What each call came to, of an execution of `program`. The first that said nothing shares the fate of the program."""
    said: dict[int, tuple[bool, str]] = {}
    printed = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", execution.stdout):
        before, mark, text = line.partition(MARK)
        printed.append(before)
        if mark and (word := _word(text, num_calls)):
            said.setdefault(word[0], word[1:])
    rest = replace(execution, stdout="".join(printed), wall_s=execution.wall_s / max(1, num_calls))
    if rest.status == "ok":
        rest = replace(rest, status="error", error="the program ended before the call returned")
    results: list[Execution] = []
    for number in range(num_calls):
        if number in said:
            results.append(_result(rest, *said[number]))
        else:
            results.append(rest)
            rest = replace(rest, error=f"not called: {rest.error.removeprefix('not called: ')}")
    return results


def _word(text: str, num_calls: int) -> tuple[int, bool, str] | None:
    try:
        word = json.loads(text)
    except (ValueError, RecursionError):
        word = None
    match word:
        case [int(number), bool(returned), str(what)] if 0 <= number < num_calls:
            return number, returned, what
    return None


def _result(rest: Execution, returned: bool, what: str) -> Execution:
    if not returned:
        return replace(rest, status="error", error=what)
    try:
        return replace(rest, status="ok", value=values.loads(what), error="")
    except ValueError as error:
        return replace(rest, status="error", error=f"the value cannot be read: {error}")
