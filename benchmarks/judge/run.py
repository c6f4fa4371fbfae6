"""A judge trained by RL on the real stack: order-consistency and accuracy before and after, with both orders in one group and without.

    .venv/bin/python benchmarks/judge/run.py [seeds...]      # default 0; writes results.md beside this file

The judge is made here: an untrained model, warm-started on demonstrations that go by position (`judge_starter`),
then trained (`judge`) once with the two orders of a pair in one group (EIS-GRPO) and once with each order as a
group of its own: the same prompts, as many samples, another baseline.
"""

import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlft
from rlft.recipes.judging import agreement, named, tasks
from rlft.recipes.starter import make_model

HERE = Path(__file__).parent
WAYS = {
    "both orders in one group": [],
    "a group for each order": ["data.options.together=false", "tasks_per_step=128", "rollout.group_size=8"],
}


def run(seed: int, folder: Path) -> list[dict[str, str | float]]:
    """A row for each way to train the judge of a seed, and one for it as it was."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    untrained = make_model(folder / "untrained", seed)
    overrides = [f"model={untrained}", f"seed={seed}", f"data.options.seed={seed}", f"run_dir={folder / 'starter'}"]
    starter = rlft.sft(rlft.load("judge_starter", overrides))["checkpoint"]
    before = {"wall_s": time.monotonic() - started, **verdicts(starter, seed)}
    rows: list[dict[str, str | float]] = [{"judge": "warm start", "seed": seed, **before}]
    for number, (name, changes) in enumerate(WAYS.items()):
        run_dir, started = folder / f"run-{number}", time.monotonic()
        about = [f"model={starter}", f"seed={seed}", f"data.options.seed={seed}", f"eval.data.options.seed={seed}", f"run_dir={run_dir}"]
        summary = rlft.train(rlft.load("judge", [*about, *changes]))
        measured = {"wall_s": time.monotonic() - started, **verdicts(summary["checkpoint"], seed), "engine": summary["eval_end"]}
        rows.append({"judge": name, "seed": seed, **measured, "steps to 0.95": first_step(run_dir, 0.95)})
        rows[0]["engine"] = summary["eval_start"]
    return rows


def verdicts(model: str, seed: int) -> dict[str, float]:
    """Consistency and accuracy on held-out pairs, of sampled verdicts (their expectation) and of greedy ones."""
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    pairs = [(task, *task.variants) for task in tasks("held_out", seed)]
    prompts = tokenizer([order.messages[0]["content"] for pair in pairs for order in pair])["input_ids"]
    with torch.no_grad():
        chances = lm(torch.tensor(prompts)).logits[:, -1].softmax(-1)
    letters = {letter: tokenizer(letter)["input_ids"][0] for letter in "AB"}
    chance = {letter: chances[:, i].view(-1, 2) for letter, i in letters.items()}
    swapped = chance["A"][:, 0] * chance["B"][:, 1] + chance["B"][:, 0] * chance["A"][:, 1]
    right = [float(chance[order.answer][i, j]) for i, pair in enumerate(pairs) for j, order in enumerate(pair)]
    said = tokenizer.batch_decode(chances.argmax(-1).view(-1, 1))
    greedy = [[named(order, said[2 * i + j]) for j, order in enumerate(pair)] for i, pair in enumerate(pairs)]
    return {
        "consistency": float(swapped.mean()),
        "consistency, greedy": fmean(agreement([one], [other]) for one, other in greedy),
        "accuracy": fmean(right),
        "accuracy, greedy": fmean(order.answer == text for order, text in zip([o for pair in pairs for o in pair], said, strict=True)),
    }


def first_step(run_dir: Path, enough: float) -> float:
    """The first evaluation with that consistency; nan if there is none."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return next((row["step"] for row in rows if row.get("eval/mean", 0) >= enough), float("nan"))


def main() -> None:
    seeds = [int(seed) for seed in sys.argv[1:]] or [0]
    rows = [row for seed in seeds for row in run(seed, Path("runs/judge-benchmark") / str(seed))]
    names = list(rows[1])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    shown = [[row.get(name, "") for name in names] for row in rows]
    lines += ["| " + " | ".join(value if isinstance(value, str) else f"{value:.3g}" for value in cells) + " |" for cells in shown]
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    legend = (
        "On held-out pairs. consistency: chance that the verdicts of the two orders name the same response; expected over verdicts "
        "drawn at temperature 1, and of greedy ones. engine: the first again, as the run's own evaluation on vLLM measured it. "
        "steps to 0.95: first evaluation (every 5 steps) with that consistency. wall_s: everything, actors' start included."
    )
    command = " ".join(["benchmarks/judge/run.py", *map(str, seeds)])
    text = "\n".join(["# Judge", "", f"`{command}` on {machine}", "", *lines, "", legend, ""])
    (HERE / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
