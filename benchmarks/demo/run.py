"""`make demo` with several seeds, the starter policy made anew each time: what it learns, how long it takes, where the time goes.

    .venv/bin/python benchmarks/demo/run.py [seeds...]      # default 0 1 2; writes results.md beside this file
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
COMPUTED = ("rollout", "reward", "learner_collate", "learner_annotate", "learner_backward", "learner_optimizer")


def run(seed: int, folder: Path) -> dict[str, float]:
    """One demo from nothing to its summary, in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    rlft = str(Path(sys.executable).with_name("rlft"))
    with (folder / "log.txt").open("w") as log:
        subprocess.run([rlft, "demo", "--seed", str(seed)], cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=1200)
    wall_s = time.monotonic() - started
    summary = json.loads((folder / "runs/demo/summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "runs/demo/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "time/step_s" in row]
    computed = sum(row[f"time/{name}_s"] for row in steps for name in COMPUTED)
    return {
        "seed": seed,
        "wall_s": wall_s,
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


def main() -> None:
    seeds = [int(seed) for seed in sys.argv[1:]] or [0, 1, 2]
    results = [run(seed, Path("runs/benchmark") / str(seed)) for seed in seeds]
    names = list(results[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(f"{result[name]:.3g}" for name in names) + " |" for result in results]
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    legend = (
        "before, after: held-out accuracy, mean of 8 samples at temperature 1 over 400 tasks. wall_s: all of `rlft demo`, the starter "
        "policy included. outside: share of the steps' time outside rollout, reward and learner computation. probe: largest difference "
        "of engine and learner log-probabilities over all publishes. ratio: largest |ratio - 1| of a first minibatch. "
        "KL: largest |KL(old, new)| there."
    )
    text = "\n".join(["# Demo", "", f"`{' '.join(['benchmarks/demo/run.py', *map(str, seeds)])}` on {machine}", "", *lines, "", legend, ""])
    (HERE / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
