"""Programs graded by tests: the sandbox gives back values, what is expected never enters it, and both are compared out here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from rlft.errors import RewardError, SandboxError
from rlft.rewards.code_asserts import UNDECIDED, Assertion, FunctionCall, Unconverted
from rlft.rewards.code_cases import Case, Printed, Returned, read_cases
from rlft.rewards.code_preamble import with_preamble
from rlft.rewards.code_replay import replay
from rlft.rewards.code_values import Comparison, same_output, same_value
from rlft.rewards.extract import blocks, final
from rlft.rewards.grader import defaults
from rlft.sandbox.backends import Backend, open_sandbox
from rlft.sandbox.types import Execution, Limits
from rlft.types import Task, Trajectory

MAX_CODE = 2**18  # characters of a program that is still run
NEEDS_A_SECOND = "has test code that is no plain assert on calls; in_sandbox_asserts = true runs it in a second sandbox"
SHOWN = 300  # characters of an input or a value in the feedback
_opened: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, bool], asyncio.Task[Backend]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Grading:
    """What the options of `code_tests` come to."""

    how: Comparison
    limits: Limits
    total_s: float
    in_sandbox_asserts: bool
    show_expected: bool


@dataclass(frozen=True)
class Outcome:
    """What came of one case; `problem` is "" if it passed."""

    problem: str
    execution: Execution
    given: str = ""
    expected: str = ""


@defaults(timeout_s=60.0)
async def code_tests(
    task: Task,
    trajectory: Trajectory,
    *,
    tests: str = "",
    partial: bool = False,
    stop_at_first: bool = True,
    max_tests: int | None = None,
    numeric: Literal["exact", "tolerant"] = "exact",
    tolerance: float = 1e-6,
    test_s: float = 5.0,
    total_s: float = 30.0,
    max_memory_mb: int = 512,
    in_sandbox_asserts: bool = True,
    preamble: Literal["functions", "all", "none"] = "functions",
    show_expected: bool = False,
    feedback_chars: int = 2000,
    sandbox: str = "local",
    allow_unsafe: bool = False,
) -> tuple[float, str]:
    """1 if the Python that was written passes the task's tests, else 0; with feedback that says which test failed, and how.

    What follows a last </think>, and there the inside of a last <answer>...</answer>, is read. The program is what stands
    in its last block fenced as ```python, else in its last fenced block, else all of it.
    The tests are in `task.answer`, in one of the formats of `code_cases`. Whatever the program does is its own fault and
    counts as a wrong answer: raising, running out of time or memory, crashing, trying what is denied.

    Args:
        tests: field of `task.meta` that holds the tests; "" for the answer.
        partial: the share of passed tests instead of all or nothing.
        stop_at_first: tests after the first failed one are not run (all are with `partial`).
        max_tests: only so many of the tests, the first ones.
        numeric: "exact", and 5.0 is not 5, printed or returned; "tolerant", and numbers may differ by `tolerance`,
            relative or absolute.
        test_s: longest time of one test.
        total_s: longest running time of all tests together; the rest counts as failed.
        max_memory_mb: of one test.
        in_sandbox_asserts: test code that is no plain assert on calls runs in a second sandbox, which holds the tests and gets
            the values of the calls; its verdict is marked as such. Without it such a task cannot be graded.
        preamble: whose missing imports of names that contest sites give (`deque`, `heapq`, `inf`, `List`, ...) are added: "functions"
            that are called with arguments and return values, "all", for asserts and whole programs too, or "none".
        show_expected: the feedback shows expected values too. They may then end up in prompts.
        feedback_chars: longest feedback.
        sandbox: "local", "A" or "B" (one tier of it), "http://host:port" (a server in SandboxFusion's format), or "unsafe".
        allow_unsafe: "unsafe" is really meant: programs run unprotected.

    Raises:
        TaskError: the tests cannot be read.
        RewardError: an option is wrong, or the sandbox cannot be had.
    """
    _check_choice("numeric", numeric, "exact", "tolerant")
    _check_choice("preamble", preamble, "functions", "all", "none")
    cases = read_cases(task, tests)[:max_tests]
    if any(isinstance(case, Unconverted) for case in cases) and not in_sandbox_asserts:
        raise RewardError(f"code_tests: task {task.id!r} {NEEDS_A_SECOND}")
    program = extract_program(final(trajectory))
    if objection := _unfit(program):
        return 0.0, objection
    called = {case.function for case in cases if isinstance(case, Returned)}
    program = with_preamble(program, called) if preamble == "all" or (preamble == "functions" and called) else program
    how = Comparison(tolerance if numeric == "tolerant" else None)
    limits = Limits(wall_s=test_s, cpu_s=test_s, memory_mb=max_memory_mb)
    grading = Grading(how, limits, total_s, in_sandbox_asserts, show_expected)
    try:
        backend = await _shared(sandbox, allow_unsafe)
        passed, said = await _grade(cases, program, backend, grading, stop=stop_at_first and not partial)
    except SandboxError as error:
        raise RewardError(f"code_tests: {error}") from error
    value = passed / len(cases) if partial else float(passed == len(cases))
    return value, said if len(said) <= feedback_chars else f"{said[: max(0, feedback_chars - 3)]}..."


def _check_choice(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise RewardError(f"code_tests: {name} {value!r}; expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")


def extract_program(text: str) -> str:
    """The last block fenced as Python, else the last fenced block, else the whole text. A fence that is never closed ends with the text."""
    found = blocks(text)
    python = [block for block in found if block.language in ("python", "python3", "py")]
    return (python or found)[-1].text if found else text


async def _shared(name: str, allow_unsafe: bool) -> Backend:
    """The one sandbox of this event loop, started at its first use. It ends with the process."""
    opened = _opened.setdefault(asyncio.get_running_loop(), {})
    key = (name, allow_unsafe)
    before = opened.get(key)
    if before is None or (before.done() and (before.cancelled() or before.exception() is not None)):
        opened[key] = asyncio.get_running_loop().create_task(open_sandbox(name, allow_unsafe=allow_unsafe))
    return await asyncio.shield(opened[key])


def _unfit(program: str) -> str:
    """Why a text is not even run; "" if it is."""
    if not program.strip():
        return "there is no program"
    if len(program) > MAX_CODE:
        return f"the program has {len(program)} characters; at most {MAX_CODE} are run"
    bad = next((char for char in program if char == "\0" or "\ud800" <= char <= "\udfff"), "")
    return f"the program holds the character {bad!a}, which Python source cannot" if bad else ""


async def _grade(cases: Sequence[Case], program: str, backend: Backend, grading: Grading, stop: bool) -> tuple[int, str]:
    """Tests passed, and what to say of the failed ones."""
    passed, number, said = 0, 0, []
    async for outcome in _outcomes(cases, program, backend, grading):
        number += 1
        if not outcome.problem:
            passed += 1
            continue
        if len(said) < 3:
            said.append(_describe(outcome, number, len(cases), grading.show_expected))
        if stop:
            break
    summary = f"passed {passed} of {len(cases)} tests" if passed == len(cases) or not stop else ""
    return passed, "\n".join(filter(None, [*said, summary]))


async def _outcomes(cases: Sequence[Case], program: str, backend: Backend, grading: Grading) -> AsyncIterator[Outcome]:
    """What comes of each case, in order. Neighbouring cases that are calls share a process as long as it lives."""
    left_s = grading.total_s
    position = 0
    while position < len(cases):
        limits = replace(grading.limits, wall_s=min(left_s, grading.limits.wall_s))
        found = await _next_outcomes(cases[position:], program, backend, replace(grading, limits=limits, total_s=left_s))
        for outcome in found:
            left_s -= outcome.execution.wall_s
            yield outcome
        position += len(found)
        if left_s <= 0 and position < len(cases):
            late = Execution("timeout", "", "")
            for _ in cases[position:]:
                yield Outcome(f"not run: the tests before it took the {grading.total_s:g} s that all may take together", late)
            return


async def _next_outcomes(cases: Sequence[Case], program: str, backend: Backend, grading: Grading) -> list[Outcome]:
    """The outcomes of at least one case, from the front."""
    match cases[0]:
        case Printed() as case:
            execution = await backend.run(program, stdin=case.stdin, limits=grading.limits)
            return [_judge_printed(case, execution, grading.how)]
        case Unconverted() as case:
            problem, execution = await replay(case, program, backend, grading.limits, grading.total_s)
            return [Outcome(problem, execution, case.source if grading.show_expected else "")]
    batch: list[Returned | Assertion] = []
    for case in cases:
        if not isinstance(case, (Returned, Assertion)):
            break
        batch.append(case)
    calls = [(_target(name, program), args, kwargs) for case in batch for name, args, kwargs in _calls(case)]
    executions = list(await backend.call(program, calls, limits=grading.limits))
    outcomes: list[Outcome] = []
    for case in batch:
        own, executions = executions[: len(_calls(case))], executions[len(_calls(case)) :]
        alive = all(execution.status in ("ok", "error") for execution in own)
        if outcomes and (not alive or own[0].error.startswith("not called")):
            break  # the limits are those of one test, which gets a process to itself
        outcomes.append(await _settled(_judge_calls(case, own, grading.how), case, program, backend, grading))
        if not alive:
            break
    return outcomes


async def _settled(outcome: Outcome, case: Returned | Assertion, program: str, backend: Backend, grading: Grading) -> Outcome:
    """An outcome that is not told outside of a sandbox, as the sandbox of the tests tells it."""
    if not (isinstance(case, Assertion) and outcome.problem.startswith(UNDECIDED) and grading.in_sandbox_asserts):
        return outcome
    if any(name[:1].isupper() for name in case.again.functions):  # methods: objects do not leave their sandbox
        return outcome
    problem, execution = await replay(case.again, program, backend, grading.limits, grading.total_s)
    return replace(outcome, problem=problem, execution=replace(execution, wall_s=outcome.execution.wall_s + execution.wall_s))


def _calls(case: Returned | Assertion) -> tuple[FunctionCall, ...]:
    return case.calls if isinstance(case, Assertion) else ((case.function, case.args, dict(case.kwargs)),)


def _target(function: str, program: str) -> str:
    """What to call: a bare name may be a method of `class Solution`, as LeetCode has it."""
    own = re.search(rf"^(async\s+def|def|class)\s+{re.escape(function)}\b|^{re.escape(function)}\s*[:=]", program, re.MULTILINE)
    solution = re.search(r"^class\s+Solution\b", program, re.MULTILINE)
    return f"Solution.{function}" if solution and not own and "." not in function else function


def _judge_printed(case: Printed, execution: Execution, how: Comparison) -> Outcome:
    problem = _failure(execution)
    if not problem and not same_output(execution.stdout, case.expected, how):
        problem = "wrong output"
    return Outcome(problem, execution, f"input: {_clip(case.stdin)}", case.expected)


def _judge_calls(case: Returned | Assertion, executions: Sequence[Execution], how: Comparison) -> Outcome:
    failed = next((execution for execution in executions if execution.status != "ok"), None)
    shown = "; ".join(_call_text(call) for call in _calls(case))
    values = [execution.value for execution in executions]
    if failed is not None:
        problem = _failure(failed)
    elif isinstance(case, Assertion):
        problem = case.objection(values, how)
    else:
        expected = [case.expected, *(case.expected if case.wrapped else [])]
        right = any(same_value(values[0], value, replace(how, from_json=True)) for value in expected)
        problem = "" if right else "wrong value"
    if problem and failed is None:
        problem += f": returned {'; '.join(map(_show, values))}"
    spent = replace(failed or executions[-1], wall_s=sum(execution.wall_s for execution in executions))
    return Outcome(problem, spent, f"call: {shown}", case.source if isinstance(case, Assertion) else _show(case.expected))


def _failure(execution: Execution) -> str:
    return "" if execution.status == "ok" else f"{execution.status}: {execution.error}".rstrip(": ")


def _describe(outcome: Outcome, number: int, total: int, show_expected: bool) -> str:
    """A failed test in words."""
    lines = [f"test {number} of {total} failed: {_clip(outcome.problem)}", outcome.given]
    for name, text in (("stdout", outcome.execution.stdout), ("stderr", outcome.execution.stderr)):
        if text.strip():
            lines.append(f"{name}: {_clip(text.strip(), from_end=name == 'stderr')}")
    if show_expected and outcome.expected:
        lines.append(f"expected: {_clip(outcome.expected)}")
    return "\n".join(filter(None, lines))


def _call_text(call: FunctionCall) -> str:
    name, args, kwargs = call
    return f"{name}({', '.join([*map(_show, args), *(f'{key}={_show(value)}' for key, value in kwargs.items())])})"


def _show(value: Any) -> str:
    try:
        return _clip(repr(value))
    except ValueError as error:  # an int of more digits than Python writes
        return f"<{error}>"


def _clip(text: str, from_end: bool = False) -> str:
    if len(text) <= SHOWN:
        return text
    return f"...{text[-SHOWN:]}" if from_end else f"{text[:SHOWN]}..."
