"""Every method from the same starter policy on the demo's additions: what it learns on the real stack, and how fast.

    .venv/bin/python benchmarks/algorithms/run.py                 # every row: about half an hour on two cores
    .venv/bin/python benchmarks/algorithms/run.py grpo            # the seeds of one row
    .venv/bin/python benchmarks/algorithms/run.py ppo:1 nft:2     # single runs

Each run writes its figures to results.json; results.md and curves.png are made from all that stand there.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
RLFT = str(Path(sys.executable).with_name("rlft"))
RUNS = Path("runs/algorithms")
LIMIT_S = 360  # a run has six minutes
LAST = 10  # steps over which a metric is averaged

COMMON = ["steps=30", "tasks_per_step=32", "tracking.rollouts_every=0"]
COMMON += ["eval.every=10", "eval.samples=2", "eval.pass_k=[1]", "eval.greedy=false"]
COMMON += ["rollout.num_workers=1", "learner.num_ranks=1"]  # one core's work: two runs can share the machine
COMMON += ["learner.num_minibatches=2"]  # the second one is off-policy, so that clips and ratios act
CRITIC = ["critic.lr=5e-4", "critic.warmup_steps=5", "critic.num_minibatches=4", "critic.num_epochs=2"]
ONE_STEP = ["learner.num_minibatches=1"]  # a step has at most 32 pairs, too few to share out at this learning rate
ROWS = {
    "grpo": ["algorithm.clip_high=0.28"],
    "dr_grpo": ["algorithm.max_length=8"],
    "dapo": ["rollout.drop_no_signal=true", "rollout.max_refills=2"],
    "rloo": [],
    "reinforce_pp": [],
    "ppo": CRITIC,
    "gspo": [],
    "cispo": [],
    "nft": [],
    "rft": [],
    "dpo": ONE_STEP,
    "remax": [],
    "gmpo": [],
    "vapo": CRITIC,
    "clip_cov": [],
    "kl_cov": [],
    "rwr": [],
    "ipo": ONE_STEP,
    "kto": [],
}
SEEDS = {"grpo": (0, 1, 2), "ppo": (0, 1, 2), "nft": (0, 1, 2)}
SHOWN = {"critic/explained_variance": "value explained", "kl/old": "KL(old)", "policy/entropy": "entropy"}


def run(name: str, seed: int) -> dict[str, object]:
    """One run, from the starter to its summary."""
    model = Path(f"runs/starter-{seed}")
    RUNS.mkdir(parents=True, exist_ok=True)
    with (RUNS / "log.txt").open("a") as log:
        call([RLFT, "starter", "--out", str(model), "--seed", str(seed)], log)
        seeded = [f"model={model}", f"seed={seed}", f"data.options.seed={seed}", f"eval.data.options.seed={seed}"]
        base = [f"algorithm={{name='{name}'}}", f"run_dir={RUNS / name}-{seed}"]
        options = [part for value in [*seeded, *COMMON, *base, *ROWS[name]] for part in ("--set", value)]
        started = time.monotonic()
        call([RLFT, "train", "demo", "--overwrite", *options], log)
        wall_s = time.monotonic() - started
    rows = [json.loads(line) for line in (RUNS / f"{name}-{seed}" / "metrics.jsonl").read_text().splitlines()]
    evals = [(row["step"], row["eval/mean"], row["eval/low"], row["eval/high"]) for row in rows if "eval/mean" in row]
    steps = [row for row in rows if "time/step_s" in row]
    means = {metric: fmean(row[metric] for row in steps[-LAST:] if metric in row) for metric in SHOWN if metric in steps[-1]}
    return {"wall_s": wall_s, "step_s": fmean(row["time/step_s"] for row in steps), "evals": evals, "options": ROWS[name], **means}


def call(command: list[str], log) -> None:
    """Raises CalledProcessError, TimeoutExpired."""
    subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=4 * LIMIT_S)


def table(results: dict[str, dict]) -> str:
    """All runs so far, in the order of ROWS."""
    headings = ["method", "seed", "options", "before", "after", "rise", "wall (s)", "step (s)", *SHOWN.values()]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for name in ROWS:
        for key in sorted(key for key in results if key.partition(":")[0] == name):
            result = results[key]
            (_, before, *_), (_, after, low, high) = result["evals"][0], result["evals"][-1]
            extra = [f"{result[metric]:.3g}" if metric in result else "" for metric in SHOWN]
            cells = [name, key.partition(":")[2], " ".join(result["options"]), f"{before:.3f}", f"{after:.3f} [{low:.3f}, {high:.3f}]"]
            cells += [f"{after - before:+.3f}", f"{result['wall_s']:.0f}", f"{result['step_s']:.2f}", *extra]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def legend() -> str:
    """What the table holds, and where it was measured."""
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}"
    return (
        f"`.venv/bin/python benchmarks/algorithms/run.py`, on {machine}, Python {platform.python_version()}. From the demo's starter "
        f"policy of each seed, {COMMON[0]}, 32 tasks of 16 samples a step in two minibatches, learning rate 3e-4. before, after: "
        f"held-out accuracy, mean of 2 samples at temperature 1 over 400 tasks, with its 95 % interval. wall: all of `rlft train`, "
        f"evaluations included. value explained, KL(old), entropy: means over the last {LAST} steps."
    )


def draw(results: dict[str, dict]) -> None:
    """Held-out accuracy over steps, one line per method (its first seed)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5))
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for color, name in zip(colors, ROWS, strict=False):
        for key in sorted(key for key in results if key.partition(":")[0] == name):
            steps, means, *_ = zip(*results[key]["evals"], strict=True)
            axes.plot(steps, means, color=color, label=name if key.endswith(":0") else None, alpha=1.0 if key.endswith(":0") else 0.4)
    axes.set(xlabel="step", ylabel="held-out accuracy, samples at temperature 1", ylim=(0, 1))
    axes.legend(ncol=2, fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(HERE / "curves.png", dpi=110)


def main() -> None:
    asked = sys.argv[1:] or list(ROWS)
    wanted = [one if ":" in one else f"{one}:{seed}" for one in asked for seed in ([0] if ":" in one else SEEDS.get(one, (0,)))]
    unknown = [one for one in wanted if one.partition(":")[0] not in ROWS]
    if unknown:
        sys.exit(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    store = HERE / "results.json"
    for one in wanted:
        name, _, seed = one.partition(":")
        result = run(name, int(seed))
        results = json.loads(store.read_text()) if store.is_file() else {}
        results[one] = result
        store.write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "results.md").write_text(f"# What the methods learn\n\n{legend()}\n\n{table(results)}\n\n![curves](curves.png)\n")
        draw(results)
        print(f"{one}: {result['evals'][0][1]:.3f} -> {result['evals'][-1][1]:.3f} in {result['wall_s']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
