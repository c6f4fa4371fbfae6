"""Inside a grading process: requests come in, verdicts go out one by one.

A request is a pickle with its length before it; only the caller sends any. An answer is lines of
JSON, so that nothing a grading process says is ever unpickled:

    ["at", item, term]                   this call is being worked on
    ["verdicts", item, term, [[v, f]]]   what it gave: value and feedback
    ["failed", item, term, why]          it gave nothing; the item's other calls are off
    ["gather"]                           from here on the awaitables run, all at once
    ["end", reusable]                    all calls were answered
"""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import socket
import traceback
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any

from rlft.errors import RewardError
from rlft.rewards.grader import Grader, Term, verdicts
from rlft.types import Group, Trajectory

Call = tuple[int, int]  # item of the request, term of the grader
Say = Callable[..., None]
HEADER = 8  # bytes of a request's length
MAX_ERROR = 2000  # characters of a user's exception that are kept


def encode(calls: list[Call], limit_s: float, subjects: bytes) -> bytes:
    """A request. `subjects` is a pickled {item: Trajectory or Group}."""
    body = pickle.dumps((calls, limit_s, subjects))
    return len(body).to_bytes(HEADER, "big") + body


def serve(connection: socket.socket, grader: Grader) -> None:
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


def answer(calls: list[Call], limit_s: float, subjects: bytes, grader: Grader, loop: asyncio.AbstractEventLoop, say: Say) -> bool:
    """Grade one request. Whether this process is as good as new afterwards."""
    try:
        items: Mapping[int, Trajectory | Group] = pickle.loads(subjects)
    except Exception as error:
        for item, index in calls:
            say("failed", item, index, f"a grading process cannot unpickle this task: {_explain(error)}", now=False)
        return True
    failed: set[int] = set()
    awaitables: dict[Call, Awaitable[Any]] = {}
    for item, index in calls:
        if item not in failed:
            say("at", item, index)
            try:
                returned = _invoke(grader[index], items[item])
                if inspect.isawaitable(returned):
                    awaitables[item, index] = returned
                else:
                    say("verdicts", item, index, verdicts(grader[index], returned, _count(items[item])), now=False)
            except BaseException as error:  # sys.exit() included: a reward may end a verdict, not the process
                failed.add(item)
                say("failed", item, index, failure(grader[index], error), now=False)
    going = {call: awaitable for call, awaitable in awaitables.items() if call[0] not in failed}
    for call in awaitables.keys() - going.keys():
        if inspect.iscoroutine(dropped := awaitables[call]):
            dropped.close()
    return not going or _gather(going, limit_s, items, grader, loop, say)


def failure(term: Term, error: BaseException) -> str:
    """Why a reward gave no verdict, in words."""
    if isinstance(error, RewardError):
        text = str(error)[:MAX_ERROR]
        return text if text.startswith("reward ") else f"reward {term.name!r}: {text}"
    return f"reward {term.name!r} raised {_explain(error)}"


def too_slow(name: str, limit_s: float) -> str:
    return f"reward {name!r} did not return within its limit of {limit_s:g} s"


def _invoke(term: Term, subject: Trajectory | Group) -> Any:
    return term.fn(subject) if isinstance(subject, Group) else term.fn(subject.task, subject)


def _count(subject: Trajectory | Group) -> int:
    return len(subject.trajectories) if isinstance(subject, Group) else 1


def _explain(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:MAX_ERROR]


def _gather(
    awaitables: Mapping[Call, Awaitable[Any]],
    limit_s: float,
    items: Mapping[int, Trajectory | Group],
    grader: Grader,
    loop: asyncio.AbstractEventLoop,
    say: Say,
) -> bool:
    """Run awaitables concurrently under one deadline. Whether all of them ended by it."""
    say("gather")

    async def settle(call: Call, awaitable: Awaitable[Any]) -> None:
        term = grader[call[1]]
        try:
            returned = await _announced(_as_coroutine(awaitable), lambda: say("at", *call))
            say("verdicts", *call, verdicts(term, returned, _count(items[call[0]])))
        except BaseException as error:
            say("failed", *call, failure(term, error))

    tasks = {loop.create_task(settle(call, awaitable)): call for call, awaitable in awaitables.items()}
    _, late = loop.run_until_complete(asyncio.wait(tasks, timeout=limit_s))
    for task in late:
        item, index = tasks[task]
        say("failed", item, index, too_slow(grader[index].name, limit_s), now=False)
    return not late


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
