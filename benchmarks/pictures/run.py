"""The pictures of docs/looking.md, made of real runs on the spot.

    .venv/bin/python benchmarks/pictures/run.py [names...]     # default: all; a run that is there already is not done again

Runs lie in runs/pictures/, pictures go to docs/pictures/: what `rlft show` and `rlft compare` print, and the plots of every
kind of run. About five minutes on two idle cores.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from rich.console import Console

import rlft
from rlft.recipes.starter import make_model
from rlft.report import compare, viewer
from rlft.report.plots import draw_runs

ROOT = Path(__file__).parents[2]
RUNS, PICTURES = ROOT / "runs" / "pictures", ROOT / "docs" / "pictures"
WIDTH, COLORS = 1100, 64  # pixels and palette of a picture in the docs
SIZE = ["rollout.num_workers=1", "learner.num_ranks=1", "tasks_per_step=32", "rollout.group_size=8", "steps=20"]
SMALL = [*SIZE, "eval.every=5", "eval.samples=4"]
PAID = ["reward.length={ fn = 'length', budget = 5, weight = 0.2 }", "eval.pass_k=[1, 4]", "eval.data.limit=50", "algorithm.kl_coef=0.001"]
LEARNED = [f"model={RUNS / 'sft' / 'checkpoints' / 'step-000250'}"]
PAIRS = ["data.options.count=3200", "steps=50", "learner.num_ranks=1", "tasks_per_step=64"]


def train(name: str, *changes: str) -> None:
    rlft.train(rlft.load("demo", [*SMALL, *PAID, *LEARNED, f"run_dir={RUNS / name}", *changes]), overwrite=True)


def sft() -> None:
    model = make_model(RUNS / "untrained", seed=0)
    rlft.sft(rlft.load("starter", [f"model={model}", f"run_dir={RUNS / 'sft'}", "steps=250", "data.options.count=32000"]), overwrite=True)


def dpo() -> None:
    options = [*PAIRS, *LEARNED, f"run_dir={RUNS / 'dpo'}", "algorithm.name=dpo", "learner.lr=1e-4"]
    config = rlft.load("reward_model", options)
    table = config.model_dump(exclude_none=True, exclude={"eval", "stages"})
    rlft.dpo(rlft.config.validate(table), overwrite=True)


def train_rm() -> None:
    held_out = ["eval.every=10", "eval.data.options.count=400"]
    rlft.train_rm(rlft.load("reward_model", [*PAIRS, *LEARNED, *held_out, f"run_dir={RUNS / 'train-rm'}"]), overwrite=True)


MADE: dict[str, Callable[[], None]] = {
    "sft": sft,
    "train": lambda: train("train"),
    "train-slow": lambda: train("train-slow", "learner.lr=5e-5", "algorithm.clip_high=0.2"),
    "dpo": dpo,
    "train-rm": train_rm,
}


def printed(name: str, title: str, show: Callable[[Console], None]) -> None:
    """Return what a command prints, as SVG without fonts from elsewhere."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    show(console)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)
    (PICTURES / f"{name}.svg").write_text(svg.replace(str(ROOT) + "/", ""), encoding="utf-8")


def shrunk(source: Path, name: str) -> None:
    """A plot as a small file."""
    picture = Image.open(source).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(COLORS).save(PICTURES / f"{name}.png", optimize=True)


def main(names: list[str]) -> None:
    for name in names or MADE:
        if not (RUNS / name / "summary.json").is_file():
            MADE[name]()
    done = [name for name in MADE if (RUNS / name / "summary.json").is_file()]
    PICTURES.mkdir(exist_ok=True)
    for name in done:
        if name != "train-slow":  # in the picture of several runs
            shrunk(RUNS / name / "plots" / "summary.png", name)
    if "train" in done:
        shown = viewer.Choice(worst=1, best=1)
        printed("show", "rlft show runs/pictures/train --worst 1 --best 1", lambda console: viewer.show(console, RUNS / "train", shown))
        held = viewer.Choice(kind="eval", worst=2)
        printed("show-eval", "rlft show runs/pictures/train --eval --worst 2", lambda console: viewer.show(console, RUNS / "train", held))
    if {"train", "train-slow"} <= set(done):
        runs = compare.read_runs([RUNS / "train", RUNS / "train-slow"])
        printed("compare", "rlft compare runs/pictures/train runs/pictures/train-slow", lambda console: compare.compare(console, runs))
        shrunk(draw_runs({run.name: run.rows for run in runs}, RUNS / "runs.png"), "runs")
    print(f"pictures: {', '.join(sorted(path.name for path in PICTURES.iterdir()))}")


if __name__ == "__main__":
    main(sys.argv[1:])
