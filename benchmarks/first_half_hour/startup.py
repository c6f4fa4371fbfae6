"""Measures where the time of a tiny run's start goes: `python benchmarks/first_half_hour/startup.py [--repeats 3]`.

The run trains an untrained model of 0.9 million parameters on four additions, with one engine, one learner rank and one reward worker.
Its output is a pipe, so that it says plain lines; when each line came is noted here. Writes startup.json and startup.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
RUN = """
model = "model"
steps = 5
tasks_per_step = 4

[data]
source = "tasks.jsonl"

[reward]
exact_match = 1.0
"sums:places" = 0.5

[rollout]
group_size = 4
max_tokens = 8
max_model_len = 128
memory = 1.0
"""
SUMS = '''
def places(task, trajectory):
    """Share of the answer's digits that stand in their places."""
    return sum(a == b for a, b in zip(trajectory.text, task.answer)) / len(task.answer)
'''
LIMIT_S = 240


def prepare(folder: Path) -> None:
    from rlft.recipes.starter import make_model

    make_model(folder / "model")
    tasks = [{"prompt": f"{n}0+0{n}=", "answer": f"{n}{n}0"} for n in range(1, 5)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (folder / "run.toml").write_text(RUN)
    (folder / "sums.py").write_text(SUMS)


def lines_of(command: list[str], folder: Path) -> list[tuple[float, str]]:
    """Every line that a command says, with the seconds since it began."""
    begun = time.monotonic()
    said = []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            said.append((time.monotonic() - begun, line.rstrip()))
            if said[-1][0] > LIMIT_S:
                process.terminate()
    said.append((time.monotonic() - begun, f"exit {process.returncode}"))
    return said


def measure(folder: Path) -> dict[str, Any]:
    """One run: when it said what, and its own account of the start."""
    said = lines_of([sys.executable, "-m", "rlft", "train", "run.toml", "--overwrite"], folder)
    assert said[-1][1] == "exit 0", "\n".join(line for _, line in said)
    times = [0.0, *(at for at, _ in said)]
    summary = json.loads((folder / "runs" / "run" / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["time/step_s"] for row in rows if "time/step_s" in row]
    return {
        "first line": said[0][0],
        "longest silence": max(b - a for a, b in zip(times, times[1:], strict=False)),
        "end of the first step": next(at for at, line in said if line.startswith("step 1/")),
        "first step": steps[0],
        "a later step": median(steps[1:]),
        "exit": said[-1][0],
        "startup": summary["startup"],
        "lines": said,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The medians of all runs, in Markdown."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    figures = {name: median(run[name] for run in runs) for name in runs[0] if name not in ("startup", "lines")}
    phases = {name: median(run["startup"].get(name, 0.0) for run in runs) for name in runs[0]["startup"]}
    head = [
        f"Medians of {len(runs)} runs on {os.cpu_count()} cores; load average at the end {load}.",
        "Phases from `placing the actors` on last side by side, so that they do not add up.",
    ]
    tables = []
    for title, values in (("figure", figures), ("phase", phases)):
        rows = "\n".join(f"| {name} | {value:.1f} |" for name, value in values.items())
        tables.append(f"| {title} | seconds |\n|---|---|\n{rows}")
    return "# The start of a tiny run\n\n" + "\n".join(head) + "\n\n" + "\n\n".join(tables) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        runs = [measure(Path(folder)) for _ in range(options.repeats)]
    for at, line in runs[-1]["lines"]:
        print(f"{at:7.2f}  {line}")
    print(table(runs))
    (options.out / "startup.json").write_text(json.dumps(runs, indent=1) + "\n")
    (options.out / "startup.md").write_text(table(runs))


if __name__ == "__main__":
    main()
