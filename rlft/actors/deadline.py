"""Every wait on an actor has a deadline and says who was waited for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from rlft import errors
from rlft.errors import RlftError, StallError

LOOK_S = 1.0  # between two looks at what is waited for
Value = TypeVar("Value")


async def within(calls: Sequence[Awaitable[Any]], timeout_s: float, what: str) -> list[Any]:
    """Await all calls; the first error ends the wait.

    Raises:
        StallError: they were not done after `timeout_s` seconds, or an actor died.
        RlftError: raised by an actor, as it was raised there.
    """
    from ray.exceptions import RayActorError, RayTaskError

    async def one(call: Awaitable[Any]) -> Any:
        return await call

    try:
        async with asyncio.timeout(timeout_s):
            return list(await asyncio.gather(*map(one, calls)))
    except RayTaskError as error:  # first: one that wraps an actor's own TimeoutError is a TimeoutError too
        if isinstance(error.cause, RlftError):
            raise error.cause from None
        raise
    except TimeoutError:
        raise StallError(f"{what}: no answer within {timeout_s:.0f} s; raise its timeout_s if it is only slow") from None
    except RayActorError as error:
        raise _of_constructor(str(error)) or StallError(f"{what}: the actor died: {error}") from error


async def watched(work: Awaitable[Value], look: Callable[[], Awaitable[None]]) -> Value:
    """Await `work`, which has a deadline of its own, and `look` every second until then; what `look` raises ends it."""
    doing = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([doing], timeout=LOOK_S))[0]:
            await look()
        return doing.result()
    finally:
        doing.cancel()


async def answered(calls: Sequence[Awaitable[Value]], timeout_s: float = LOOK_S) -> list[Value]:
    """Return the answers of those calls that answer within `timeout_s`. Whoever waits for a busy or dead actor's work tells of it."""

    async def one(call: Awaitable[Value]) -> Value:
        return await call

    if not calls:
        return []
    done, late = await asyncio.wait([asyncio.ensure_future(one(call)) for call in calls], timeout=timeout_s)
    for task in late:
        task.cancel()
    return [task.result() for task in done if not task.exception()]


async def together(waits: Sequence[Awaitable[Value]]) -> list[Value]:
    """Await all side by side; the first error ends the others."""

    async def one(wait: Awaitable[Value]) -> Value:
        return await wait

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(wait)) for wait in waits]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _of_constructor(text: str) -> RlftError | None:
    """What an actor's constructor raised on purpose; Ray brings it as the last line of a traceback."""
    found = re.search(r"^rlft\.errors\.(\w+): (.*)", text, re.MULTILINE | re.DOTALL)
    return getattr(errors, found[1])(found[2].strip()) if found else None
