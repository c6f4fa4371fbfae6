"""How far a long piece of work is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Item = TypeVar("Item")
EVERY_S = 10.0  # between lines where there is no terminal
STRIDE = 256  # items between looks at the clock


def shown(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """The items, while it is shown how many are done. Work that is over within `EVERY_S` says nothing but on a terminal.

    Args:
        total: how many there are, where that is known.
    """
    console = console or Console()
    if console.is_terminal:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    said, of = clock(), "" if total is None else f" of {total:,}"
    for done, item in enumerate(items):
        if done % STRIDE == 0 and done and clock() - said >= EVERY_S:
            said = clock()
            console.print(f"{what}: {done:,}{of}", markup=False, highlight=False, soft_wrap=True)
        yield item
