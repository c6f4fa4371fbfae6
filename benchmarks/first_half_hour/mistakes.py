"""The mistakes of the first half hour, each as a command of its own: what is said first, after how many seconds, and how it ends.

    .venv/bin/python benchmarks/first_half_hour/mistakes.py    # writes results.md beside this file; two minutes

The table of mistakes is the one that the tests hold, `tests/mistakes.py`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mistakes import MISTAKES, Mistake, lay, left  # noqa: E402

from rlft.recipes.starter import make_model  # noqa: E402

REPEATS = 1  # the quickest of so many is shown: another process on the machine only adds
LIMITS = {"need neither torch nor the Hub": 1.0, "ask the Hub": 10.0, "need torch": 10.0}  # seconds
SHOWN = 150  # characters of a message


@dataclass(frozen=True)
class Found:
    """Holds what came of a mistake."""

    mistake: Mistake
    seconds: float  # by the clock
    cpu_s: float  # of the processors
    exit: int
    said: str
    added: tuple[str, ...]  # files and folders that it left

    @property
    def is_right(self) -> bool:
        told = re.search(self.mistake.told, self.said)
        return bool(told) and self.exit == self.mistake.exit and not self.added and "Traceback" not in self.said


def make(mistake: Mistake, model: str) -> Found:
    """Make a mistake `REPEATS` times, each in a fresh folder."""
    taken, last = [], None
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            lay(folder, mistake, model)
            before, used, started = left(folder), os.times(), time.perf_counter()
            last = subprocess.run(
                [sys.executable, "-m", "rlft", *mistake.arguments],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **mistake.env}, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            seconds, now = time.perf_counter() - started, os.times()
            cpu_s = now.children_user + now.children_system - used.children_user - used.children_system
            taken.append((seconds, cpu_s))
            added = tuple(sorted(set(left(folder)) - set(before)))
    assert last is not None
    said = last.stderr if mistake.exit == 1 else " ".join(line.strip("│╭╮╰╯─ ") for line in last.stderr.splitlines())
    return Found(mistake, *min(taken), last.returncode, said.strip(), added)


def kind(mistake: Mistake) -> str:
    return "need torch" if mistake.torch else "ask the Hub" if mistake.env else "need neither torch nor the Hub"


def line(found: Found) -> str:
    first = re.sub(r".*Try '.*?' for help\. *(Error)?", "", found.said).partition("\n")[0].strip()
    first = re.sub(r"/tmp/[^ ,;:)']*", "…", first)
    shown = (first if len(first) <= SHOWN else f"{first[:SHOWN]}…").replace("|", "\\|").replace("`", "'")
    command = " ".join(found.mistake.arguments).replace("|", "\\|")
    figures = f"{found.seconds:.2f} | {found.cpu_s:.2f} | {found.exit} | {'yes' if found.is_right else 'NO'}"
    return f"| {found.mistake.name} | `rlft {command}` | {shown} | {figures} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        model = str(make_model(Path(name) / "model", seed=0, layers=2, width=64))
        make(MISTAKES[0], model)  # compiles modules
        every = [make(mistake, model) for mistake in MISTAKES]
    lines = [
        "# Mistakes of the first half hour",
        "",
        f"Each is a command of its own, in a fresh folder; the quickest of {REPEATS}. {platform.machine()}, {os.cpu_count()} CPUs, "
        f"load {os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB. "
        "Where the load is above the number of CPUs, a command waits for them: the seconds of CPU are what it takes on an idle machine. "
        "The last column: the message names what to do, the exit status is right, "
        "there is no traceback, and nothing is left in the folder.",
        "",
    ]
    for what, limit in LIMITS.items():
        group = [found for found in every if kind(found.mistake) == what]
        slowest = max(group, key=lambda found: found.seconds)
        within, used = (sum(getattr(found, key) <= limit for found in group) for key in ("seconds", "cpu_s"))
        medians = f"{median(found.seconds for found in group):.2f} s ({median(found.cpu_s for found in group):.2f} s of CPU)"
        lines.append(
            f"- **{len(group)} that {what}**: {within} of them within {limit:g} s, {used} within {limit:g} s of CPU; median "
            f"{medians}, slowest {slowest.seconds:.2f} s ({slowest.mistake.name})."
        )
    head = "| mistake | command | what is said first | seconds | of CPU | exit | right |"
    lines += ["", head, "|---|---|---|---:|---:|---:|---|", *map(line, every), ""]
    (HERE / "results.md").write_text("\n".join(lines))
    print("\n".join(lines))
    sys.exit(not all(found.is_right for found in every))


if __name__ == "__main__":
    main()
