"""Measures when a run says that it cannot learn, and that a reward hangs: alarms.md beside this file.

python benchmarks/first_half_hour/alarms.py

Each is a tiny run of its own, its output a pipe. Two controls: a reward that differs, and one that is slow but answers within its limit.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from stop_moments import begin, end  # noqa: E402

LIMIT_S = 4  # of a call of the reward
LONGEST_S = 180.0
OUTCOMES = {
    "always 0": "0.0",
    "always 1": "1.0",
    "differs (control)": "float(len(trajectory.text) % 3)",
}


def runs_with(folder: Path, reward: str, *settings: str):
    """A started run of ten steps whose reward is one line of Python, which also notes when it was first called."""
    called = f"called = Path({str(folder / 'called')!r})"
    body = ["called.exists() or called.touch()", reward]
    text = ["import time", "from pathlib import Path", called, "def grade(task, trajectory):", *(f"    {line}" for line in body)]
    (folder / "mine.py").write_text("\n".join(text) + "\n")
    pairs = ['reward={"mine:grade" = 1.0}', "eval={}", "steps=10", *settings]
    return begin(folder, *(word for pair in pairs for word in ("--set", pair)))


def told(started, words: str) -> tuple[float, str]:
    """When a line with these words came, by the clock of files, and the line; (inf, "") if the run ended without."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        over = started.process.poll() is not None
        for line in started.printed.splitlines():
            if words in line:
                return time.time(), line
        if over:
            break
        time.sleep(0.05)
    return float("inf"), ""


def main() -> None:
    rows = []
    for name, value in OUTCOMES.items():
        with tempfile.TemporaryDirectory(prefix="rlft-alarms-") as folder:
            started = runs_with(Path(folder), f"return {value}")
            _, line = told(started, "no_signal")
            rows.append((f"a reward that {name}", line.partition(": nothing")[0] or "not told"))
            end(started)
        print(name, flush=True)
    for name, seconds in (("hangs", 1000), ("is slow (control)", LIMIT_S // 2)):
        with tempfile.TemporaryDirectory(prefix="rlft-alarms-") as folder:
            started = runs_with(Path(folder), f"time.sleep({seconds}); return 1.0", f"reward_pool.timeout_s={LIMIT_S}", "steps=1")
            at, line = told(started, "answers wait")  # while actors come up, on answers of its own
            after = at - (Path(folder) / "called").stat().st_mtime if line else 0.0
            rows.append((f"a reward that {name}", f"told {after:.1f} s after its first call: {line}" if line else "not told"))
            if line:
                told(started, "first publish")
                began = time.time()
                at, line = told(started, "rollouts 1: reward")
                rows.append((f"a reward that {name}, in a step", f"told {at - began:.1f} s after the first rollouts began: {line}"))
            end(started)
        print(name, flush=True)
    text = [
        "# When a run says that it cannot learn",
        "",
        f"Tiny runs (`python benchmarks/first_half_hour/alarms.py`) on two cores. A call of the reward may take {LIMIT_S} s.",
        "Promised are five steps, and the limit of the reward plus five seconds.",
        "",
        "| run | what it said |",
        "|---|---|",
        *(f"| {name} | {said} |" for name, said in rows),
    ]
    print("\n".join(text))
    (HERE / "alarms.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
