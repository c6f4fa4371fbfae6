"""SCoRe on a task where a second look can be right: both stages, stage II alone, and multi-turn GRPO, from the same starter policies.

    .venv/bin/python benchmarks/score/run.py [--rows score stage_2 grpo] [--seeds 0 1 2]

A row is one method with one seed. Each is kept in results.json beside this file as soon as it is done, and results.md and
curves.png are made from all rows there, so rows can be run one at a time. The starter of a seed is made once.
"""

import argparse
import json
import os
import platform
import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

import rlft
from rlft.recipes.starter import make_model

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
STEPS = 45  # of every row; SCoRe's two stages have as many together
ROWS: dict[str, tuple[str, list[str]]] = {
    "score": ("SCoRe, both stages", []),
    "stage_2": ("stage II alone", [f"stages=[{{steps={STEPS}, algorithm={{name='score', stage=2, alpha=2.0, kl_coef=0.01}}}}]"]),
    "grpo": ("multi-turn GRPO", [f"stages=[{{steps={STEPS}, algorithm={{name='grpo', kl_coef=0.01}}}}]"]),
}
FIGURES = ("accuracy_1", "accuracy_2", "delta", "delta_low", "delta_high", "incorrect_to_correct", "correct_to_incorrect",
           "kept", "mended", "unchanged", "edit")  # fmt: skip


def make_starter(seed: int, folder: Path) -> str:
    """The warm-started policy of a seed, made unless it is there."""
    done = folder / "starter" / "summary.json"
    if not done.is_file() or "checkpoint" not in json.loads(done.read_text()):
        shutil.rmtree(folder, ignore_errors=True)
        untrained = make_model(folder / "untrained", seed)
        rlft.sft(rlft.load("score_starter", [f"model={untrained}", *seeded(seed), f"run_dir={folder / 'starter'}"]))
    return json.loads(done.read_text())["checkpoint"]


def seeded(seed: int) -> list[str]:
    return [f"seed={seed}", f"data.options.seed={seed}"]


def run(row: str, seed: int, folder: Path) -> dict[str, Any]:
    """One method from the starter of a seed: figures before and after, and both accuracies at every evaluation."""
    starter, started = make_starter(seed, folder), time.monotonic()
    run_dir = folder / row
    about = [f"model={starter}", *seeded(seed), f"eval.data.options.seed={seed}", f"run_dir={run_dir}"]
    summary = rlft.train(rlft.load("score", [*about, *ROWS[row][1]]), overwrite=run_dir.exists())
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in logged if "eval/attempt/delta" in line]
    return {
        "row": row,
        "seed": seed,
        "wall_s": time.monotonic() - started,
        "start": figures(summary, "start"),
        "end": figures(summary, "end"),
        "curve": [[line["step"], line["eval/attempt/accuracy_1"], line["eval/attempt/accuracy_2"]] for line in evaluated],
    }


def figures(summary: dict[str, Any], when: str) -> dict[str, float]:
    sampled = {name: summary[f"eval_{when}_attempt/{name}"] for name in FIGURES if f"eval_{when}_attempt/{name}" in summary}
    return sampled | {f"greedy {k}": summary[f"eval_{when}_attempt_greedy/accuracy_{k}"] for k in (1, 2)}


def holds(result: dict[str, Any]) -> dict[str, bool]:
    """What self-correction is asked to be, one line each."""
    start, end = result["start"], result["end"]
    best = max(start["accuracy_1"], start["accuracy_2"], start["greedy 1"], start["greedy 2"])
    return {
        "delta >= 0.10, its interval above 0": end["delta"] >= 0.10 and end["delta_low"] > 0,
        "correct to incorrect < 5 %": end["correct_to_incorrect"] < 0.05,
        "accuracy at attempt 1 not below the starter's": end["accuracy_1"] >= start["accuracy_1"],
        "accuracy at attempt 2 above the starter's best single attempt by 0.1": end["accuracy_2"] >= best + 0.1,
    }


def table(results: list[dict[str, Any]]) -> list[str]:
    names = ["policy", "seed", "attempt 1", "attempt 2", "delta", "wrong to right", "right to wrong", "unchanged", "edit",
             "greedy 1", "greedy 2", "wall_s"]  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    starts = {result["seed"]: ("starter", result["seed"], result["start"], "") for result in results}
    ends = [(ROWS[result["row"]][0], result["seed"], result["end"], f"{result['wall_s']:.0f}") for result in results]
    for policy, seed, f, wall_s in [*starts.values(), *ends]:
        delta = f"{f['delta']:+.3f} [{f['delta_low']:+.3f}, {f['delta_high']:+.3f}]"
        shown = [f["accuracy_1"], f["accuracy_2"], delta, f["incorrect_to_correct"], f["correct_to_incorrect"], f["unchanged"], f["edit"],
                 f["greedy 1"], f["greedy 2"]]  # fmt: skip
        cells = [policy, str(seed), *(x if isinstance(x, str) else f"{x:.3f}" for x in shown), wall_s]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def checks(results: list[dict[str, Any]]) -> list[str]:
    """Over how many seeds each line of `holds` is true, for every method."""
    lines = []
    for row, (name, _) in ROWS.items():
        held = [holds(result) for result in results if result["row"] == row]
        lines += [f"- {name}: {line}: {sum(h[line] for h in held)} of {len(held)} seeds" for line in (held[0] if held else ())]
    return lines


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Held-out accuracy at both attempts over the steps, mean over seeds with every seed behind it."""
    figure = Figure(figsize=(4 * len(ROWS), 3.2), layout="constrained")
    panels = figure.subplots(1, len(ROWS), sharey=True, squeeze=False)[0]
    for axes, (row, (name, _)) in zip(panels, ROWS.items(), strict=True):
        curves = [result["curve"] for result in results if result["row"] == row]
        for k, color in ((1, "C0"), (2, "C1")):
            for curve in curves:
                axes.plot([p[0] for p in curve], [p[k] for p in curve], color=color, alpha=0.3, linewidth=1)
            if curves:
                steps = [p[0] for p in min(curves, key=len)]
                axes.plot(steps, [fmean(curve[i][k] for curve in curves) for i in range(len(steps))], color=color, label=f"attempt {k}")
        axes.set(title=name, xlabel="step", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out accuracy")
    panels[0].legend(loc="upper left")
    figure.savefig(file, dpi=110)


def report(results: list[dict[str, Any]]) -> str:
    results = sorted(results, key=lambda result: (list(ROWS).index(result["row"]), result["seed"]))
    draw(results, HERE / "curves.png")
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    legend = (
        "On 400 held-out tasks. attempt 1, attempt 2: accuracy of 4 samples a task at temperature 1; delta: their difference with its 95 % "
        "interval, clustered over tasks; wrong to right, right to wrong: shares of all samples; unchanged: second attempts that repeat the "
        "first; edit: mean edit distance of the two, over the longer one's length; greedy: accuracy at temperature 0. "
        f"Every row is {STEPS} steps from the starter of its seed. wall_s: training and evaluations, actors' start included."
    )
    lines = ["# SCoRe", "", f"`benchmarks/score/run.py` on {machine}", "", *table(results), "", legend, "", *checks(results), ""]
    return "\n".join([*lines, "![accuracy at both attempts over the steps](curves.png)", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="rows of results.md; see the top of this file")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        for row in chosen.rows:
            result = run(row, seed, Path("runs/score-benchmark") / str(seed))
            kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
            kept = [r for r in kept if (r["row"], r["seed"]) != (row, seed)] + [result]
            RESULTS.write_text("[\n" + ",\n".join(json.dumps(r) for r in kept) + "\n]\n")
            (HERE / "results.md").write_text(report(kept))
    print((HERE / "results.md").read_text())


if __name__ == "__main__":
    main()
