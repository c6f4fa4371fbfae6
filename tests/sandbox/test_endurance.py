"""Twenty thousand jobs leave nothing behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]
JOBS = 20_000


def state(pid):
    """(descriptors, mounts, resident bytes) of a process."""
    folder = Path(f"/proc/{pid}")
    resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir(folder / "fd")), len((folder / "mounts").read_text().splitlines()), resident


def zombies():
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [name] if state == "Z" and int(parent) == os.getpid() else []
    return found


def test_twenty_thousand_jobs_leave_nothing_behind(box, below):
    async def play(first, count):
        wrong = 0
        for start in range(first, first + count, 100):
            jobs = [box.sandbox.run(f"print({n} * 3)") for n in range(start, start + 100)]
            wrong += sum(result.stdout != f"{(start + i) * 3}\n" for i, result in enumerate(await asyncio.gather(*jobs)))
        return wrong

    async def all_places():
        await asyncio.gather(*[box.sandbox.run("import time\ntime.sleep(0.5)") for _ in range(box.sandbox.concurrency)])

    box.runner.run(all_places())  # each has its own control groups, made when it is first needed
    assert box.runner.run(play(0, 500)) == 0
    first_server = box.sandbox.facts["pid"]
    before, server_before = state(os.getpid()), state(first_server)
    assert box.runner.run(play(500, 9000)) == 0
    server_after = state(first_server)
    assert box.runner.run(play(9500, JOBS - 9500)) == 0
    assert box.sandbox.facts["pid"] != first_server
    after = state(os.getpid())
    assert after[:2] == before[:2]
    assert server_after[:2] == server_before[:2]
    assert server_after[2] - server_before[2] <= 5 << 20
    assert after[2] - before[2] <= 5 << 20
    assert zombies() == []
    assert below(box.sandbox.facts["pid"]) == set()
    assert not os.path.exists(f"/proc/{first_server}")
