"""How much of the returns' variance PPO's critic explains on the demo's additions, beside what a perfect critic would explain.

    .venv/bin/python benchmarks/algorithms/critic.py [LAMBDA ...]      # 0.5 and 0.95; minutes each

The policy's own probabilities say what every state is worth: an answer with a slip 0, any other the probability of the
digits that are still missing. Slips are drawn, so even these values leave a part of the variance, and the more of it the
further a return looks ahead. Figures are kept in critic.json as soon as a run is done; critic.md is made from them.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import torch

from rlft.algorithms.gae import gae
from rlft.learner.critic import explained_variance
from rlft.recipes.addition import tasks

HERE = Path(__file__).parent
RLFT = str(Path(sys.executable).with_name("rlft"))
SEED, WARMUP, STEPS = 0, 110, 130
COMMON = [f"steps={STEPS}", "tasks_per_step=64", "tracking.rollouts_every=0", "eval.every=30", "eval.samples=2", "eval.pass_k=[1]"]
COMMON += ["eval.greedy=false", "rollout.num_workers=1", "learner.num_ranks=1", "learner.betas=[0.9, 0.98]"]
COMMON += ["critic.lr=5e-4", "critic.num_minibatches=8", "critic.num_epochs=2", f"critic.warmup_steps={WARMUP}"]


def run(lam: float) -> dict[str, object]:
    """PPO from the starter, the critic alone at first; what it explained at every update, and what could be explained."""
    model, run_dir = Path(f"runs/starter-{SEED}"), Path(f"runs/critic/{lam}")
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    settings = [f"model={model}", f"seed={SEED}", f"data.options.seed={SEED}", f"eval.data.options.seed={SEED}", f"run_dir={run_dir}"]
    settings += [*COMMON, f"algorithm={{name='ppo', lam={lam}}}"]
    with (run_dir.parent / "log.txt").open("a") as log:
        for command in (
            [RLFT, "starter", "--out", str(model), "--seed", str(SEED)],
            [RLFT, "train", "demo", "--overwrite", *(part for setting in settings for part in ("--set", setting))],
        ):
            started = time.monotonic()
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=3600)
    ended = Path(json.loads((run_dir / "summary.json").read_text())["checkpoint"])
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "wall_s": time.monotonic() - started,
        "explained": [row["critic/explained_variance"] for row in rows if "critic/explained_variance" in row],
        "evals": [(row["step"], row["eval/mean"]) for row in rows if "eval/mean" in row],
        "explainable": [explainable(folder, lam) for folder in (model, ended)],
    }


@torch.no_grad()
def explainable(model: Path, lam: float, samples: int = 16) -> float:
    """Share of the variance of lambda-returns that values of the policy's own making explain, on 400 training tasks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(SEED)
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    chosen = tasks("train", SEED)[:400]
    prompts = torch.tensor([tokenizer.encode(task.messages[0]["content"]) for task in chosen]).repeat_interleave(samples, 0)
    answers = torch.tensor([[*tokenizer.encode(task.answer), tokenizer.eos_token_id] for task in chosen]).repeat_interleave(samples, 0)
    written = prompts
    for _ in range(answers.shape[1]):
        written = torch.cat([written, lm(written).logits[:, -1].softmax(-1).multinomial(1)], 1)
    said = written[:, prompts.shape[1] :]
    right = lm(torch.cat([prompts, answers], 1)).logits[:, prompts.shape[1] - 1 : -1].log_softmax(-1).gather(-1, answers[..., None])[..., 0]
    to_come = right.flip(1).cumsum(1).flip(1).exp()
    so_far = torch.cat([torch.ones(len(said), 1), (said == answers).cumprod(1)], 1)
    ended = ((said == tokenizer.eos_token_id).cumsum(1) - (said == tokenizer.eos_token_id).int()) == 0
    values = torch.where(ended, so_far[:, :-1] * to_come, 0.0)
    last = torch.arange(said.shape[1]) == ended.sum(1, keepdim=True) - 1
    rewards, turn_ids = torch.where(last, so_far[:, -1:], 0.0), torch.where(ended, 0, -1)
    batch = SimpleNamespace(token_ids=said, rewards=rewards, turn_ids=turn_ids, traj_ids=torch.arange(len(said)))
    return explained_variance(gae(batch, values, lam=lam)[1], values, ended, lambda x: x)



def report(results: dict[str, dict]) -> str:
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    marks = [10, 20, 40, 60, 80, 100, WARMUP, 120, STEPS]
    lines = ["# What PPO's critic explains", "", f"`benchmarks/algorithms/critic.py` on {machine}", ""]
    names = ["lambda", *(f"{m - 9}-{m}" for m in marks), "perfect, starter", "perfect, at the end", "accuracy", "wall (s)"]
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for lam, result in sorted(results.items()):
        means = [fmean(result["explained"][m - 10 : m]) for m in marks]
        accuracy = f"{result['evals'][0][1]:.3f} -> {result['evals'][-1][1]:.3f}"
        cells = [lam, *(f"{x:.3f}" for x in [*means, *result["explainable"]]), accuracy, f"{result['wall_s']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    legend = (
        f"Share of the variance of the lambda-returns that the values explain, before each update learns from them; means over ten "
        f"updates of 1024 samples. The critic starts from the starter policy's body with values of 0; in the first {WARMUP} updates it "
        f"alone learns, in 16 optimizer steps each. perfect: what values from the policy's own probabilities "
        f"explain. Seed {SEED}; `{' '.join(COMMON)}`."
    )
    return "\n".join([*lines, "", legend, ""])


def main() -> None:
    store = HERE / "critic.json"
    for lam in sys.argv[1:] or ("0.5", "0.95"):
        result = run(float(lam))
        results = {**(json.loads(store.read_text()) if store.is_file() else {}), lam: result}
        store.write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "critic.md").write_text(report(results))
        print((HERE / "critic.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
