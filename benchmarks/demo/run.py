"""The demos with several seeds: what they learn, how long they take, where time and memory go.

    .venv/bin/python benchmarks/demo/run.py [seeds...]                    # tiny: default 0 1 2; writes results.md beside this file
    .venv/bin/python benchmarks/demo/run.py --model smollm2 [seeds...]    # writes results-smollm2.md

Each run starts from nothing but the installed packages: its model is made anew too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

HERE = Path(__file__).parent
RECIPE = {"tiny": "demo", "smollm2": "sentences"}
RESULTS = {"tiny": "results.md", "smollm2": "results-smollm2.md"}
TITLES = {"tiny": "Demo", "smollm2": "Demo on SmolLM2"}
CHECKS = (
    "outside: share of the steps' time outside rollout, reward and learner computation. probe: largest difference "
    "of engine and learner log-probabilities over all publishes. ratio: largest |ratio - 1| of a first minibatch. "
    "KL: largest |KL(old, new)| there."
)
LEGENDS = {
    "tiny": "before, after: held-out accuracy, mean of 8 samples at temperature 1 over 400 tasks. wall_s: all of `rlft demo`, the starter "
    f"policy included. {CHECKS}",
    "smollm2": "before, after: share of held-out answers that keep all rules, at temperature 1 (48 tasks, 4 samples each) and greedy. "
    f"wall_s: all of `rlft demo --model smollm2`, the conversion of the model included. {CHECKS} first eval_s: from the start of the "
    "command to the end of the first evaluation. ... s: mean seconds of a step by part. ... GB: peak private memory of a process.",
}
COMPUTED = ("rollout", "reward", "learner_collate", "learner_annotate", "learner_backward", "learner_optimizer")
ROLES = {"ray::RolloutWorker": "engine", "ray::LearnerRank": "learner", "ray::RewardWorker": "reward", "rlft demo": "driver"}


def watch(run: subprocess.Popen[bytes], metrics: Path) -> tuple[dict[str, float], float]:
    """Until the run ends: the largest private memory of a process of each role, in GB, and when the first figures were written."""
    root, started = psutil.Process(run.pid), time.monotonic()
    peaks, first = dict.fromkeys(ROLES.values(), 0.0), 0.0
    while run.poll() is None:
        first = first or (time.monotonic() - started) * (metrics.is_file() and metrics.stat().st_size > 0)
        for process in [root, *root.children(recursive=True)]:
            try:
                title = " ".join(process.cmdline())
                anonymous = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            except (psutil.NoSuchProcess, OSError):
                continue  # it ended between two looks
            for name, role in ROLES.items():
                if name in title and anonymous:
                    peaks[role] = max(peaks[role], int(anonymous[1]) / 1e6)
        time.sleep(0.5)
    return peaks, first


def run(model: str, seed: int, folder: Path) -> dict[str, float]:
    """One demo from nothing to its summary, in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [str(Path(sys.executable).with_name("rlft")), "demo", "--model", model, "--seed", str(seed)]
    results, started = folder / "runs" / RECIPE[model], time.monotonic()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        peaks, first = watch(process, results / "metrics.jsonl")
    wall_s = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"seed {seed} ended with exit status {process.returncode}; {folder / 'log.txt'} says why")
    for large in (results / "checkpoints", folder / "runs" / "smollm2"):
        shutil.rmtree(large, ignore_errors=True)
    rows = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
    return {"seed": seed, "wall_s": wall_s, **figures(rows, json.loads((results / "summary.json").read_text()))} | (
        {} if model == "tiny" else {"first eval_s": first, **parts(rows), **{f"{role} GB": gb for role, gb in peaks.items()}}
    )


def figures(rows: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, float]:
    """What was learned, and what the checks of every step found at worst."""
    steps = [row for row in rows if "time/step_s" in row]
    computed = sum(row[f"time/{name}_s"] for row in steps for name in COMPUTED)
    return {
        "before": summary["eval_start"],
        "after": summary["eval_end"],
        "greedy before": summary["eval_start_greedy"],
        "greedy after": summary["eval_end_greedy"],
        "steps": summary["steps"],
        "tokens/s": summary["tokens_per_s"],
        "outside": 1 - computed / sum(row["time/step_s"] for row in steps),
        "probe": max(row["publish/max_diff"] for row in steps),
        "ratio": max(row["ratio/first_max_dev"] for row in steps),
        "KL": max(abs(row["kl/old"]) for row in steps),
    }


def parts(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens a second while rolling out, and mean seconds of a step by part."""
    steps = [row for row in rows if "time/step_s" in row]
    names = sorted(
        {name for row in steps for name in row if name.startswith("time/")}, key=lambda name: -sum(row.get(name, 0.0) for row in steps)
    )
    sampled = sum(row["rollout/tokens_total"] for row in steps) / sum(row["time/rollout_s"] for row in steps)
    means = {name.removeprefix("time/").removesuffix("_s"): fmean(row.get(name, 0.0) for row in steps) for name in names}
    return {"rollout tokens/s": sampled, **{f"{name} s": mean for name, mean in means.items() if mean >= 0.05}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(RECIPE), default="tiny")
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    asked = parser.parse_args()
    results = [run(asked.model, seed, Path("runs/benchmark") / asked.model / str(seed)) for seed in asked.seeds]
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    words = ["benchmarks/demo/run.py", *(["--model", asked.model] if asked.model != "tiny" else []), *map(str, asked.seeds)]
    lines = by_seed(results) if asked.model == "tiny" else by_figure(results)
    text = "\n".join([f"# {TITLES[asked.model]}", "", f"`{' '.join(words)}` on {machine}", "", *lines, "", LEGENDS[asked.model], ""])
    (HERE / RESULTS[asked.model]).write_text(text)
    print(text)


def by_seed(results: list[dict[str, float]]) -> list[str]:
    """A table with a line for each run."""
    names = list(results[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(f"{result[name]:.3g}" for name in names) + " |" for result in results]


def by_figure(results: list[dict[str, float]]) -> list[str]:
    """A table with a column for each run."""
    names = list(dict.fromkeys(name for result in results for name in result))
    head, *rest = [f"| {name} | " + " | ".join(f"{result.get(name, 0.0):.3g}" for result in results) + " |" for name in names]
    return [head, "|" + "---|" * (len(results) + 1), *rest]


if __name__ == "__main__":
    main()
