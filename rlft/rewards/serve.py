"""Inside a grading process: requests come in, verdicts go out one by one.

A request is a pickle with its length before it; only the caller sends any. An answer is lines of
JSON, so that nothing a grading process says is ever unpickled:

    ["at", item, term]                   this call is being worked on
    ["verdicts", item, term, [[v, f]]]   what it gave: value and feedback, or null where it does not apply, or
                                         {"cause": c, "text": why} for one of a group that has none
    ["failed", item, term, cause, why]   it gave nothing; where no number may stand in, the item's other calls are off
    ["gather", seconds]                  from here on the awaitables run, all at once, for so long at most
    ["end", reusable]                    all calls were answered
"""

from __future__ import annotations

import asyncio
import inspect
import json
import mmap
import pickle
import resource
import socket
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlft.errors import explain
from rlft.rewards.grader import Failure, Rule, Term, Verdict, failure, verdicts
from rlft.types import Group, Trajectory

Call = tuple[int, int]  # item of the request, term of the grader
Say = Callable[..., None]
Subjects = Mapping[int, Trajectory | Group]
HEADER = 8  # bytes of a request's length


def encode(calls: list[Call], limit_s: float, subjects: bytes) -> bytes:
    """A request. `subjects` is a pickled {item: Trajectory or Group}."""
    body = pickle.dumps((calls, limit_s, subjects))
    return len(body).to_bytes(HEADER, "big") + body


def serve(connection: socket.socket, grader: Sequence[Term]) -> None:
    """Answer requests until the other end closes, or until a reward has left something running."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    requests = connection.makefile("rb")
    pending: list[str] = []

    def say(*words: Any, now: bool = True) -> None:
        pending.append(json.dumps(words))
        if now:
            connection.sendall(("\n".join(pending) + "\n").encode())
            pending.clear()

    reusable = True
    while reusable and (header := requests.read(HEADER)):
        calls, limit_s, subjects = pickle.loads(requests.read(int.from_bytes(header, "big")))
        reusable = answer(calls, limit_s, subjects, grader, loop, say)
        say("end", reusable)


def answer(
    calls: list[Call], limit_s: float, subjects: bytes, grader: Sequence[Term], loop: asyncio.AbstractEventLoop, say: Say
) -> bool:
    """Grade one request. Whether this process is as good as new afterwards."""
    try:
        items: Subjects = pickle.loads(subjects)
    except Exception as error:
        for item, index in calls:
            say("failed", item, index, "task", f"a grading process cannot unpickle this task: {explain(error)}", now=False)
        return True
    off: set[int] = set()
    awaitables: dict[Call, Awaitable[Any]] = {}
    for item, index in calls:
        if item not in off:
            term = grader[index]
            say("at", item, index)
            try:
                with _memory(term.rule.memory_mb):
                    returned = _invoke(term, items[item])
                    if inspect.isawaitable(returned):
                        awaitables[item, index] = returned
                    else:
                        say("verdicts", item, index, _spoken(verdicts(term.rule, returned, _count(items[item]))), now=False)
            except BaseException as error:  # sys.exit() included: a reward may end a verdict, not the process
                why = failure(term.rule, error, items[item])
                say("failed", item, index, why.cause, why.text, now=False)
                if why.stops(term.rule):
                    off.add(item)
    going = {call: awaitable for call, awaitable in awaitables.items() if call[0] not in off}
    for call in awaitables.keys() - going.keys():
        if inspect.iscoroutine(dropped := awaitables[call]):
            dropped.close()
    return _gather(going, limit_s, items, grader, loop, say) if going else not asyncio.all_tasks(loop)


def too_slow(rule: Rule, limit_s: float) -> Failure:
    return Failure("timeout", f"reward {rule.name!r} did not return within its limit of {limit_of(rule, limit_s):g} s")


def limit_of(rule: Rule, limit_s: float) -> float:
    """Seconds that one call may take: the rule's own, or else the pool's."""
    return limit_s if rule.timeout_s is None else rule.timeout_s


@contextmanager
def _memory(megabytes: int | None) -> Iterator[None]:
    """Within it this process may allocate so much more than it holds. Awaitables run outside it."""
    if megabytes is None:
        yield
        return
    held = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + megabytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def _invoke(term: Term, subject: Trajectory | Group) -> Any:
    return term.fn(subject) if isinstance(subject, Group) else term.fn(subject.task, subject)


def _count(subject: Trajectory | Group) -> int:
    return len(subject.trajectories) if isinstance(subject, Group) else 1


def _spoken(found: Sequence[Verdict | Failure]) -> list[Any]:
    """Verdicts as JSON has them; a failure of one trajectory of a group is told apart by its names."""
    return [asdict(one) if isinstance(one, Failure) else one for one in found]


def _gather(
    awaitables: Mapping[Call, Awaitable[Any]],
    limit_s: float,
    items: Subjects,
    grader: Sequence[Term],
    loop: asyncio.AbstractEventLoop,
    say: Say,
) -> bool:
    """Run awaitables concurrently, each under its deadline. Whether all of them ended by it."""
    limits = {call: limit_of(grader[call[1]].rule, limit_s) for call in awaitables}
    say("gather", max(limits.values()))

    async def settle(call: Call, awaitable: Awaitable[Any]) -> None:
        rule = grader[call[1]].rule
        try:
            returned = await _announced(_as_coroutine(awaitable), lambda: say("at", *call))
            say("verdicts", *call, _spoken(verdicts(rule, returned, _count(items[call[0]]))))
        except BaseException as error:
            why = failure(rule, error, items[call[0]])
            say("failed", *call, why.cause, why.text)

    async def until_late() -> bool:
        """Whether every awaitable ended by its own deadline."""
        tasks = {loop.create_task(settle(call, awaitable)): call for call, awaitable in awaitables.items()}
        started, running, intact = loop.time(), set(tasks), True
        while running:
            due = min(started + limits[tasks[task]] for task in running)
            _, running = await asyncio.wait(running, timeout=due - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if loop.time() >= started + limits[tasks[task]]]:
                running.discard(task)
                intact = False
                why = too_slow(grader[tasks[task][1]].rule, limit_s)
                say("failed", *tasks[task], why.cause, why.text)
        return intact and asyncio.all_tasks() <= {asyncio.current_task()}  # else a reward has left something running

    return loop.run_until_complete(until_late())


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@types.coroutine
def _announced(coroutine: Coroutine[Any, Any, Any], announce: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Await `coroutine`, and announce each of its steps: the one that blocks the loop is known by it."""
    value, error = None, None
    while True:
        announce()
        try:
            awaited = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            return stop.value
        value, error = None, None
        try:
            value = yield awaited
        except BaseException as raised:
            error = raised
