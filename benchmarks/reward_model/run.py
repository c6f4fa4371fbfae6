"""Reward models as rewards: how well two of them judge additions, and what a policy makes of each while it moves away from its start.

    .venv/bin/python benchmarks/reward_model/run.py [seed]      # writes results.md and over_optimisation.png beside this file

One model is trained on the preferences of a careful annotator, the other on those of a careless one. Each is the only
reward of a GRPO run; the true verifier watches with weight 0. At every checkpoint the policy answers the same held-out tasks.
"""

import asyncio
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlft
from rlft.recipes.addition import tasks
from rlft.recipes.starter import build_starter
from rlft.report.preferences import wilson
from rlft.rewards.learned.reward_model import RewardModel

HERE = Path(__file__).parent
WORK = Path("runs/benchmark_reward_model")
ANNOTATORS = {"careful": 0.0, "careless": 0.15}
STEPS, TASKS, SAVE_EVERY, SAMPLES = 60, 32, 4, 4
KL_COEF = 0.5
MEASURED = 1e-6  # a coefficient that costs nothing, so that the run records kl/ref
RUNS = {  # annotator, kl_coef
    "careful": ("careful", MEASURED),
    "careless": ("careless", MEASURED),
    "careless, KL cost": ("careless", KL_COEF),
}


@dataclass(frozen=True)
class Point:
    """What the policy of one checkpoint does on the held-out tasks."""

    step: int
    kl: float  # nats per answer, to the initial policy
    score: float  # of its own reward model, in standard deviations over the initial policy's answers from their mean
    truth: float  # share of right answers
    low: float
    high: float


def train_reward_model(name: str, starter: Path, seed: int) -> dict[str, Any]:
    data = [f"data.options.seed={seed}", f"eval.data.options.seed={seed}", f"data.options.careless={ANNOTATORS[name]}"]
    run = [f"model={starter}", f"seed={seed}", f"run_dir={WORK / f'reward model {name}'}"]
    return rlft.train_rm(rlft.load("reward_model", [*run, *data]), overwrite=True)


def train_policy(name: str, reward_model: str, kl_coef: float, starter: Path, seed: int) -> Path:
    folder = WORK / f"policy {name}"
    reward = f'reward={{ reward_model = {{ model = "{reward_model}", timeout_s = 60.0 }}, exact_match = 0.0 }}'
    seeds = [f"seed={seed}", f"data.options.seed={seed}", f"eval.data.options.seed={seed}"]
    size = [f"steps={STEPS}", f"tasks_per_step={TASKS}", f"eval.every={STEPS}"]
    kept = [f"tracking.save_every={SAVE_EVERY}", "tracking.rollouts_every=0"]
    evaluation = ["eval.metric=exact_match", "eval.samples=1", "eval.pass_k=[1]", "eval.greedy=false"]
    changes = [f"model={starter}", f"run_dir={folder}", reward, f"algorithm.kl_coef={kl_coef}", *seeds, *size, *kept, *evaluation]
    rlft.train(rlft.load("demo", changes), overwrite=True)
    return folder


@torch.inference_mode()
def measure(policy: Path, initial: Any, reward_model: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(KL estimate, reward model's score, right or not) of every sampled answer, by transformers and without the run's machinery."""
    tokenizer, lm = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    held_out = [task for task in tasks("held_out", seed) for _ in range(SAMPLES)]
    prompts = torch.tensor([tokenizer(task.messages[0]["content"])["input_ids"] for task in held_out])  # all of one length
    torch.manual_seed(0)
    ids = lm.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0, max_new_tokens=8)
    answers = ids[:, prompts.shape[1] :]
    said = (answers == tokenizer.eos_token_id).int().cumsum(1)
    real = (said - (answers == tokenizer.eos_token_id).int()) == 0  # up to the first EOS, itself included
    gap = torch.where(real, logprobs(lm, ids, answers) - logprobs(initial, ids, answers), 0.0).sum(1)
    texts = [tokenizer.decode(row[keep], skip_special_tokens=True) for row, keep in zip(answers, real, strict=True)]
    conversations = [[*task.messages, {"role": "assistant", "content": text}] for task, text in zip(held_out, texts, strict=True)]
    right = np.array([text == task.answer for task, text in zip(held_out, texts, strict=True)])
    return gap.numpy(), np.array(asyncio.run(scored(reward_model, conversations))), right


def logprobs(lm: Any, ids: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    before = lm(ids).logits[:, -answers.shape[1] - 1 : -1]
    return before.log_softmax(-1).gather(2, answers[..., None]).squeeze(2)


async def scored(reward_model: str, conversations: list[list[dict[str, str]]]) -> list[float]:
    scorer = RewardModel(model=reward_model)
    await scorer.start()
    try:
        return await scorer.score_conversations(conversations)
    finally:
        await scorer.close()


def course(folder: Path, starter: Path, reward_model: str, seed: int) -> list[Point]:
    """The initial policy and every checkpoint of a run, on the same tasks."""
    initial = AutoModelForCausalLM.from_pretrained(starter)
    checkpoints = {0: starter, **{int(path.name.removeprefix("step-")): path for path in sorted((folder / "checkpoints").iterdir())}}
    points, center, spread = [], 0.0, 1.0
    for step, policy in checkpoints.items():
        gap, score, right = measure(policy, initial, reward_model, seed)
        if step == 0:
            center, spread = score.mean(), score.std()
        by_task = right.reshape(-1, SAMPLES).mean(1)  # a task's answers are no independent trials
        low, high = wilson(by_task.sum(), len(by_task))
        points.append(Point(step, float(gap.mean()), float((score.mean() - center) / spread), float(right.mean()), low, high))
    return points


def draw(courses: dict[str, list[Point]]) -> None:
    figure = Figure(figsize=(11.0, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, points) in enumerate(courses.items()):
        kl, style = [p.kl for p in points], {"color": f"C{i}", "marker": "o", "label": name, "linestyle": "--" if "KL" in name else "-"}
        left.plot(kl, [p.score for p in points], **style)
        right.plot(kl, [p.truth for p in points], **style)
        right.fill_between(kl, [p.low for p in points], [p.high for p in points], color=f"C{i}", alpha=0.15, linewidth=0)
    left.set(title="What the reward model says", ylabel="score (std over initial answers)")
    right.set(title="What is true", ylabel="right answers (95 % interval)")
    for axes in (left, right):
        axes.set_xlabel("KL to the initial policy (nats per answer)")
        axes.grid(alpha=0.3)
    left.legend(title="annotator")
    FigureCanvasAgg(figure).print_png(HERE / "over_optimisation.png")


def table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    started = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    starter = build_starter(WORK / "starter", seed)
    models = {name: train_reward_model(name, starter, seed) for name in ANNOTATORS}
    courses = {}
    for name, (annotator, kl_coef) in RUNS.items():
        checkpoint = models[annotator]["checkpoint"]
        courses[name] = course(train_policy(name, checkpoint, kl_coef, starter, seed), starter, checkpoint, seed)
    draw(courses)
    figures = ["low", "high", "ece", "accuracy_shorter", "accuracy_longer", "margin_mean", "margin_std"]
    judged = [[name, m["eval_end"], *(m[f"eval_end_{figure}"] for figure in figures)] for name, m in models.items()]
    outcome = []
    for name, points in courses.items():
        first, last, best = points[0], points[-1], max(points, key=lambda p: p.truth)
        spans = [f"{p.truth:.3f} [{p.low:.3f}, {p.high:.3f}]" for p in (first, best, last)]
        outcome.append([name, last.kl, first.score, last.score, spans[0], f"{spans[1]} (step {best.step})", spans[2]])
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    curves = [[name, p.step, p.kl, p.score, p.truth] for name, points in courses.items() for p in points]
    text = "\n".join(
        [
            "# Reward models: accuracy, and over-optimisation",
            "",
            f"`benchmarks/reward_model/run.py {seed}` in {time.monotonic() - started:.0f} s on {machine}",
            "",
            "Pairwise accuracy on 1000 held-out pairs of a careful annotator:",
            "",
            *table(["annotator", "accuracy", *figures], judged),
            "",
            f"GRPO with that model as the only reward, {STEPS} steps; {SAMPLES} answers at temperature 1 to each of 400 held-out tasks. "
            "Score: in standard deviations of the initial policy's. Truth: share of right answers.",
            "",
            *table(["reward", "KL at the end", "score before", "score after", "truth before", "best truth", "truth after"], outcome),
            "",
            "![score and truth over KL](over_optimisation.png)",
            "",
            *table(["reward", "step", "KL", "score", "truth"], curves),
            "",
        ]
    )
    (HERE / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
