"""What the sandbox costs: per execution, per core, per cell of a session, beside starting a plain Python, in one run.

    .venv/bin/python benchmarks/sandbox/run.py [rounds]      # default 5; writes results.md beside this file

Everything runs on one core. A round measures everything in turn; the round in which plain Python started fastest is
reported, so that other work on the machine counts as little as possible.
"""

import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rlft.errors import SandboxError
from rlft.sandbox.sandbox import Sandbox
from rlft.sandbox.types import Limits

HERE = Path(__file__).parent
RUNS = 200
JOBS = 600
CELLS = 1000
MUST = {
    "execution, median ms": "<= 5",
    "executions/s on one core": ">= 150",
    "session: a cell, median ms": "< 1",
    "start with self-test, ms": "< 300",
    "session: memory when idle, MB": "<= 5",
}


async def timed(action: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        await action()
        took.append((time.perf_counter() - started) * 1000)
    return took


def p95(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


async def plain_python() -> None:
    subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)


async def per_second(sandbox: Sandbox) -> float:
    started = time.perf_counter()
    results = await asyncio.gather(*[sandbox.run("print(1)") for _ in range(JOBS)])
    assert all(result.stdout == "1\n" for result in results)
    return JOBS / (time.perf_counter() - started)


def unique_mb(pid: int) -> float:
    """Memory that would come back if the process ended."""
    words = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return sum(int(words[words.index(name) + 1]) for name in ("Private_Clean:", "Private_Dirty:")) / 1024


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def sessions(sandbox: Sandbox) -> dict[str, float]:
    opened = []

    async def first_cell() -> None:
        session = await sandbox.session(Limits(wall_s=0.1))
        opened.append(session)
        await session.execute("x = 1")

    found = {"session: start and first cell, median ms": statistics.median(await timed(first_cell, 20))}
    if os.geteuid() == 0:
        sizes = [unique_mb(pid) for pid in children(sandbox.facts["pid"])]
        found["session: memory when idle, MB"] = max(sizes)
    session = opened[0]
    cells = await timed(lambda: session.execute("x += 1\nx"), CELLS)
    found |= {"session: a cell, median ms": statistics.median(cells), "session: a cell, p95 ms": p95(cells)}
    soft = [(await session.execute("while True: y = 1")).wall_s for _ in range(5)]
    found["session: interrupt of a cell, ms after the limit"] = (statistics.median(soft) - 0.1) * 1000
    for other in opened:
        await other.close()
    return found


async def hard_kill(sandbox: Sandbox) -> float:
    """Milliseconds that a program which never ends takes beyond its limit."""
    results = [await sandbox.run("while True: pass", limits=Limits(wall_s=0.1)) for _ in range(5)]
    assert {result.status for result in results} == {"timeout"}
    return (statistics.median(result.wall_s for result in results) - 0.1) * 1000


async def measure(tier: str) -> dict[str, float]:
    started = time.perf_counter()
    sandbox = Sandbox(tier=tier, concurrency=4)  # type: ignore[arg-type]
    await sandbox.start()
    found = {"start with self-test, ms": (time.perf_counter() - started) * 1000}
    runs = await timed(lambda: sandbox.run("pass"), RUNS)
    found |= {"execution, median ms": statistics.median(runs), "execution, p95 ms": p95(runs)}
    ten = [("f", [n], {}) for n in range(10)]
    calls = await timed(lambda: sandbox.call("def f(x): return x + 1", ten), 50)
    found["ten calls of a function, median ms"] = statistics.median(calls)
    found["executions/s on one core"] = await per_second(sandbox)
    found["hard kill, ms after the limit"] = await hard_kill(sandbox)
    found |= await sessions(sandbox)
    await sandbox.close()
    loaded = Sandbox(tier=tier, preload=["numpy"], selftest=False)  # type: ignore[arg-type]
    await loaded.start()
    runs = await timed(lambda: loaded.run("import numpy"), RUNS)
    found["execution with numpy loaded, median ms"] = statistics.median(runs)
    await loaded.close()
    return found


async def one_round(tiers: list[str]) -> tuple[float, dict[str, dict[str, float]]]:
    plain = statistics.median(await timed(plain_python, 40))
    return plain, {tier: await measure(tier) for tier in tiers}


async def usable() -> list[str]:
    tiers = []
    for tier in ("A", "B"):
        sandbox = Sandbox(tier=tier)  # type: ignore[arg-type]
        try:
            await sandbox.start()
            tiers.append(tier)
        except SandboxError as error:
            print(f"left out: {error}")
        await sandbox.close()
    return tiers


def report(plain: float, by_tier: dict[str, dict[str, float]], load: float) -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    lines = ["# What the sandbox costs", ""]
    lines += [f"{cpu}, one core, Linux {platform.release()}, Python {platform.python_version()}, as {user}."]
    lines += [f"Load average at the start {load:.1f}, niceness {os.nice(0)}."]
    lines += [f"`.venv/bin/python {Path(__file__).relative_to(HERE.parents[1])}`; {RUNS} executions in a row, {JOBS} at once.", ""]
    lines += ["| | " + " | ".join(f"tier {tier}" for tier in by_tier) + " | must be |", "|---" * (len(by_tier) + 2) + "|"]
    for name in next(iter(by_tier.values())):
        cells = [f"{found[name]:.0f}" if found[name] >= 100 else f"{found[name]:.2f}" for found in by_tier.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {MUST.get(name, '')} |")
    lines.append(f"| plain `python -I -c pass`, median ms | {' | '.join([f'{plain:.2f}'] * len(by_tier))} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    tiers = asyncio.run(usable())
    plain, found = min((asyncio.run(one_round(tiers)) for _ in range(rounds)), key=lambda measured: measured[0])
    text = report(plain, found, load)
    print(text)
    (HERE / "results.md").write_text(text)


if __name__ == "__main__":
    main()
