"""The pictures of docs/quickstart.md: `python benchmarks/first_half_hour/screens.py [RUN]`.

RUN is the folder of a finished run, by default runs/demo (`rlft demo`). Its live line is drawn anew at several widths from what its
metrics.jsonl holds of a step, by the code that drew it; `rlft check` is run here, on the recipe of the demo. Writes docs/pictures/*.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from rlft.config import load
from rlft.report.lines import StepLine, evaluation_text, step_parts
from rlft.report.metrics import STEP
from rlft.report.screen import line_grid
from rlft.runs.check import Plan, check

ROOT = Path(__file__).parents[2]
WIDTHS = (80, 110, 160)


def screen(width: int) -> Console:
    return Console(width=width, record=True, file=io.StringIO(), force_terminal=True)


def save(console: Console, name: str, title: str) -> None:
    drawn = console.export_svg(title=title, code_format=re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL))
    (ROOT / "docs" / "pictures" / f"{name}.svg").write_text(drawn)


def live(run: Path, width: int) -> Console:
    """The start of a run as it was told, and its live line half-way."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    steps = [row for row in rows if STEP in row]
    shown = steps[len(steps) // 2]
    evaluated = [row for row in rows if "eval/mean" in row and row["step"] <= shown["step"]]
    console = screen(width)
    for phase, seconds in summary.get("startup", {}).items():
        console.print(f"{phase}: {seconds:.1f} s", highlight=False, markup=False)
    found: dict[str, Any] | None = None
    for row in evaluated:
        found = {name.removeprefix("eval/"): value for name, value in row.items()}
        console.print(f"step {row['step']}/{len(steps)}  {evaluation_text(found)}", highlight=False, markup=False)
    left = sum(row[STEP] for row in steps if row["step"] > shown["step"])
    speed = shown.get("rollout/tokens_total", 0) / shown[STEP]
    console.print(line_grid(StepLine(shown["step"], len(steps), step_parts(shown, speed, found), left), width))
    return console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"))
    run = parser.parse_args().run.resolve()
    (ROOT / "docs" / "pictures").mkdir(exist_ok=True)
    for width in WIDTHS:
        save(live(run, width), f"live-{width}", f"rlft train, {width} columns")
    os.chdir(ROOT)
    console = screen(80)
    asyncio.run(check(load("demo"), Plan(samples=100, console=console)))
    save(console, "check-80", "rlft check demo --samples 100")


if __name__ == "__main__":
    main()
