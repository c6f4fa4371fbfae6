"""What comes before the first step, shown as phases: Ray, and the actors while they come up."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rlft.actors.deadline import together
from rlft.config import RunConfig
from rlft.report.screen import Screen
from rlft.report.tracking import Tracker
from rlft.runs.start import ray_session

READING = "reading the model's files and the data"


@contextmanager
def shown_ray(screen: Screen, config: RunConfig, address: str | None, **roles: Any) -> Iterator[None]:
    """`ray_session`, its beginning shown as a phase."""
    joined = address or os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        with screen.phase(f"joining Ray at {joined}" if joined else "starting Ray on this machine"):
            stack.enter_context(ray_session(config, address, **roles))
        yield


async def bring_up(tracker: Tracker, waits: Mapping[str, Awaitable[Any]], beside: Sequence[Awaitable[Any]] = ()) -> list[Any]:
    """Await what starts, each shown as a phase of its own, and `beside` without a phase. Returns what they return, in order."""

    async def shown(name: str, wait: Awaitable[Any]) -> Any:
        with tracker.phase(name):
            return await wait

    return await together([*(shown(name, wait) for name, wait in waits.items()), *beside])
