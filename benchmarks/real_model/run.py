"""Two steps of GRPO on SmolLM2-135M-Instruct with default settings: does every run start and finish, and what does each process hold?

    .venv/bin/python benchmarks/real_model/run.py [jobs]    # jobs side by side, default 1; writes results.md beside this file

Ten seeds in float32, three in bfloat16, three with LoRA. The run file names the model, a task and a reward, and asks for
few and short answers; all else is default.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
MODEL = Path("runs/smollm2")
ROLES = {"ray::RolloutWorker": "engine", "ray::LearnerRank": "learner", "ray::RewardWorker": "reward", "rlft train": "driver"}
SETTINGS = {
    "float32": (range(10), []),
    "bfloat16": (range(3), ["rollout.dtype=bfloat16", "learner.dtype=bfloat16"]),
    "LoRA 16": (range(3), ["learner.lora_rank=16"]),
}
RUN_FILE = """
model = {model}
steps = 2
tasks_per_step = 4

[data]
source = "tasks.jsonl"
answer = ""

[reward]
"my_rewards:of_length" = 1.0

[rollout]
max_tokens = 24
"""
REWARD = '''
def of_length(task, trajectory, *, low=30, high=70):
    """1 for an answer of `low` to `high` characters, else 0."""
    return float(low <= len(trajectory.text) <= high)
'''
THINGS = ("a teacher", "a river", "bread", "a volcano", "the moon", "a bridge", "winter", "a violin")


def prepare(folder: Path) -> None:
    """A run file, its tasks and its reward in a folder of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tasks = [{"prompt": f"Write one short sentence about {thing}."} for thing in THINGS]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (folder / "my_rewards.py").write_text(REWARD)
    (folder / "run.toml").write_text(RUN_FILE.format(model=json.dumps(str(MODEL.resolve()))))


def private_mb(process: psutil.Process) -> float:
    """Private memory of a process in MB, shared pages left out."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1e3 if found else 0.0


def watch(run: subprocess.Popen[bytes], peaks: dict[str, float]) -> None:
    """Note the largest private memory of each role until the run ends."""
    root = psutil.Process(run.pid)
    while run.poll() is None:
        for process in [root, *root.children(recursive=True)]:
            try:
                title = " ".join(process.cmdline())
                role = next((role for name, role in ROLES.items() if name in title), None)
                if role is not None:
                    peaks[role] = max(peaks.get(role, 0.0), private_mb(process))
            except (psutil.NoSuchProcess, OSError):
                continue  # it ended between two looks
        time.sleep(0.5)


def run(name: str, seed: int, changes: list[str], folder: Path) -> dict[str, Any]:
    """One run from its file to its summary."""
    prepare(folder)
    rlft = str(Path(sys.executable).with_name("rlft"))
    sets = [word for change in [f"seed={seed}", *changes] for word in ("--set", change)]
    started, peaks = time.monotonic(), {}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([rlft, "train", "run.toml", *sets], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        watch(process, peaks)
    wall_s = time.monotonic() - started
    steps: list[float] = []
    if process.returncode == 0:
        rows = [json.loads(line) for line in (folder / "runs/run/metrics.jsonl").read_text().splitlines()]
        steps = [row["time/step_s"] for row in rows if "time/step_s" in row]
        shutil.rmtree(folder / "runs/run/checkpoints")
    told = {"kind": name, "seed": seed, "exit": process.returncode, "steps": len(steps)}
    return {**told, "wall_s": wall_s, "s/step": max(steps, default=0.0), **peaks}


def cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) and value < 100 else f"{value:.0f}" if isinstance(value, float) else str(value)


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    subprocess.run([str(Path(sys.executable).with_name("rlft")), "starter", "smollm2"], check=True)
    todo = [(name, seed, changes) for name, (seeds, changes) in SETTINGS.items() for seed in seeds]
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda job: run(*job, Path(f"runs/real_model/{job[0].replace(' ', '-')}-{job[1]}")), todo))
    names = list(dict.fromkeys(name for result in results for name in result))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(result.get(name, "")) for name in names) + " |" for result in results]
    finished = sum(result["exit"] == 0 and result["steps"] == 2 for result in results)
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    legend = (
        f"{finished} of {len(results)} runs started and finished, {jobs} at a time. wall_s: all of `rlft train`. "
        "s/step: the slower of the two steps. engine, learner, reward, driver: peak private memory of a process in MB."
    )
    text = "\n".join(["# SmolLM2, two steps", "", f"`benchmarks/real_model/run.py {jobs}` on {machine}", "", *lines, "", legend, ""])
    (HERE / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
