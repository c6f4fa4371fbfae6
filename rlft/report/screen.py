"""What a person sees while a run goes on: phases with their time, then steps. A live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlft.errors import visible
from rlft.report.lines import StepLine

REPEAT_S = 8.0  # longest silence where there is no terminal, with room for a busy machine below 10 s
LOOK_S = 0.5  # between two looks at the clock


@dataclass
class Phase:
    """One piece of work that takes time, as it is shown."""

    name: str
    began: float
    done: int = 0
    total: int = 0  # 0: not known
    unit: str = ""  # "": nothing is counted
    why: str = ""  # it lasts
    say: Callable[[str, str], None] = field(default=lambda message, style: None, repr=False)

    def count(self, done: int, total: int, unit: str) -> None:
        """Show how much of it is done."""
        self.done, self.total, self.unit = done, total, unit

    def explain(self, why: str) -> None:
        """Why it lasts: said at once where nothing was known before, and from then on beside its time."""
        news, self.why = why and not self.why, why
        if news:
            self.say(f"{self.name}: {why}", "yellow")

    def text(self, now: float) -> str:
        """The phase in a few words, such as "first evaluation: 120 of 200 samples, 12 s"."""
        seconds = now - self.began
        of = f" of {self.total:,}" if self.total else ""
        counted = f"{self.done:,}{of} {self.unit}, " if self.unit else ""
        return f"{self.name}: {counted}{seconds:.{0 if seconds >= 10 else 1}f} s{self.why and f' ({self.why})'}"


def line_grid(line: StepLine, width: int, doing: str = "") -> Table:
    """A step's line as a terminal of that width shows it."""
    bar, text = line.fitted(width, doing)
    grid = Table.grid(padding=(0, 1))
    for _ in range(3 if bar else 2):
        grid.add_column(no_wrap=True)
    middle = [ProgressBar(line.steps, line.step, bar)] if bar else []
    grid.add_row(Text(line.counter), *middle, Text(text))
    return grid


class Screen:
    """Says what a run does. Phases may begin and end in any thread and last side by side.

    Elsewhere than on a terminal a phase is a line at its end, and what lasts is said again whenever nothing was said for `REPEAT_S`.

    Args:
        console: where to.
        clock: seconds.
        doing: hears, whenever a phase begins, the names of all that last.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        doing: Callable[[str], None] = lambda phases: None,
    ) -> None:
        self.console, self.clock, self._doing = console or Console(), clock, doing
        self.began = self._said = clock()
        self.seconds: dict[str, float] = {}  # of ended phases, by name; one that came twice counts twice
        self._phases: list[Phase] = []
        self._line: StepLine | None = None
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._ticker: threading.Thread | None = None

    @contextmanager
    def phase(self, name: str, tell: bool = True) -> Iterator[Phase]:
        """While the block runs, `name` is shown with its time.

        Args:
            tell: whether a line says at the end how long it took, and `seconds` keeps it.
        """
        phase = Phase(name, self.clock(), say=self.say)
        with self._lock:
            self._phases.append(phase)
            self._doing(", ".join(each.name for each in self._phases))
        self._wake()
        try:
            yield phase
        except BaseException:
            self._over(phase)
            raise
        self._over(phase)
        if tell:
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - phase.began
            self.say(phase.text(self.clock()))

    def say(self, message: str, style: str = "") -> None:
        """Print a line, above the live one; what would do something to a terminal is escaped."""
        self._said = self.clock()
        self.console.print(visible(message), style=style, markup=False, highlight=False, soft_wrap=True)

    def show(self, line: StepLine, tell: bool) -> None:
        """A step is done. Where there is no terminal it is told if `tell`, or if nothing was said for long."""
        with self._lock:
            self._line = line
        self._wake()
        if not self.console.is_terminal and (tell or self.clock() - self._said >= REPEAT_S):
            self.say(line.plain())

    def tick(self) -> None:
        """Say what goes on, if something does and nothing was said for long."""
        with self._lock:
            phases, now = list(self._phases), self.clock()
            if not phases or now - self._said < REPEAT_S:
                return
            step = f"{self._line.counter} done; " if self._line else ""
        self.say(step + "; ".join(phase.text(now) for phase in phases))

    def close(self) -> None:
        """Give the terminal back."""
        with self._lock:
            live, self._live, line, self._line = self._live, None, self._line, None
        if live:
            live.transient = line is None
            live.update(line_grid(line, self.console.width) if line else "", refresh=True)
            live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            line, now = self._line, self.clock()
            doing = visible(" · ".join(phase.text(now) for phase in self._phases))
        if line is None:
            yield Text(doing, no_wrap=True, overflow="ellipsis")
            return
        yield line_grid(line, options.max_width, doing)

    def _over(self, phase: Phase) -> None:
        with self._lock:
            self._phases.remove(phase)
            idle = not self._phases and self._line is None
        if idle:
            self.close()

    def _wake(self) -> None:
        """Have somebody look at the clock while something goes on."""
        begun: Live | threading.Thread | None = None
        with self._lock:
            if self.console.is_terminal and self._live is None:
                begun = self._live = Live(self, console=self.console, transient=True, refresh_per_second=4)
            elif not self.console.is_terminal and self._ticker is None:
                begun = self._ticker = threading.Thread(target=self._watch, name="rlft-screen", daemon=True)
        if begun:  # outside of the lock: a live line draws itself while it starts
            begun.start()

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_S):
            self.tick()
            with self._lock:
                if not self._phases:
                    self._ticker = None
                    return
