"""Every wait on an actor has a deadline and says who was waited for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from typing import Any

from rlft import errors
from rlft.errors import RlftError, StallError


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
        return list(await asyncio.wait_for(asyncio.gather(*map(one, calls)), timeout_s))
    except RayTaskError as error:  # first: one that wraps an actor's own TimeoutError is a TimeoutError too
        if isinstance(error.cause, RlftError):
            raise error.cause from None
        raise
    except TimeoutError:
        raise StallError(f"{what}: no answer within {timeout_s:.0f} s; raise its timeout_s if it is only slow") from None
    except RayActorError as error:
        raise _of_constructor(str(error)) or StallError(f"{what}: the actor died: {error}") from error


def _of_constructor(text: str) -> RlftError | None:
    """What an actor's constructor raised on purpose; Ray brings it as the last line of a traceback."""
    found = re.search(r"^rlft\.errors\.(\w+): (.*)", text, re.MULTILINE | re.DOTALL)
    return getattr(errors, found[1])(found[2].strip()) if found else None
