"""A session remembers between cells, survives an interrupt, and says so when it does not."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rlft.errors import SandboxError
from rlft.sandbox.types import Limits

LIMITS = Limits(wall_s=20)
SHORT = Limits(wall_s=0.5)


@pytest.fixture
def cells(box):
    """Run cells of one session; gives their executions."""

    def run(*codes, limits=LIMITS):
        async def play():
            session = await box.sandbox.session(limits)
            try:
                return [await session.execute(code) for code in codes]
            finally:
                await session.close()

        return box.wait(play())

    return run


def test_cells_share_their_names_and_their_folder(cells):
    executions = cells("x = 1\nx", "print(x)\nx + 1", "def f():\n    return x", "f()", "_ * 7", "None")
    assert [(execution.status, execution.stdout, execution.value) for execution in executions] == [
        ("ok", "", "1"),
        ("ok", "1\n", "2"),
        ("ok", "", None),
        ("ok", "", "1"),
        ("ok", "", "7"),
        ("ok", "", None),
    ]


def test_an_error_is_the_cells_own(cells):
    first, second, third = cells("x = 5\n1 / 0", "x", "raise SystemExit")
    assert (first.status, first.error) == ("error", "ZeroDivisionError: division by zero")
    assert first.stderr.splitlines()[1:3] == ['  File "<cell 1>", line 2, in <module>', "    1 / 0"]
    assert (second.status, second.value, second.stderr) == ("ok", "5", "")
    assert third.error == "SystemExit"


@pytest.mark.parametrize("hang", ["while True: pass", "import time\ntime.sleep(99)", "for i in iter(int, 1): pass"])
def test_an_interrupted_cell_leaves_the_state(cells, hang):
    _, hung, after = cells("x = 5", "print('before')\n" + hang, "x", limits=SHORT)
    assert (hung.status, hung.stdout, hung.error) == ("timeout", "before\n", "interrupted after 0.5 s; the state is kept")
    assert hung.wall_s < 1.5
    assert (after.status, after.value, after.error) == ("ok", "5", "")


IGNORE = [
    "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    "import time\nwhile True:\n    try:\n        time.sleep(99)\n    except KeyboardInterrupt:\n        pass",
    "sum(range(10 ** 12))",
]


@pytest.mark.parametrize("hang", IGNORE)
def test_a_cell_that_ignores_the_interrupt_costs_the_state_and_says_so(cells, hang):
    _, hung, after = cells("x = 5", hang, "x", limits=SHORT)
    assert (hung.status, hung.error) == (
        "timeout",
        "ran longer than 0.5 s and ignored the interrupt; the session was reset: variables and files are gone",
    )
    assert 1.4 < hung.wall_s < 3
    assert (after.status, after.error) == ("error", "NameError: name 'x' is not defined")


@pytest.mark.parametrize(
    ("end", "status"), [("import os\nos._exit(0)", "crashed"), ("import ctypes\nctypes.string_at(0)", "crashed"), ("PTRACE", "denied")]
)
def test_a_cell_that_ends_the_process_resets_the_session(cells, end, status):
    _, ended, after = cells("x = 5", end.replace("PTRACE", "import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)"), "x")
    assert ended.status == status
    assert ended.error.endswith("; the session was reset: variables and files are gone")
    assert after.error == "NameError: name 'x' is not defined"


def test_a_process_that_ends_between_cells_is_reported_with_the_next(cells):
    code = "import os, threading\nx = 5\nthreading.Timer(0.1, os._exit, (0,)).start()"
    _, slept, last = cells(code, "import time\ntime.sleep(0.25)", "1", limits=LIMITS)
    assert (slept.status, "the session was reset" in slept.error) == ("crashed", True)
    assert (last.status, last.error) == ("ok", "")


def test_a_flood_of_output_is_cut_and_the_state_is_kept(cells):
    limits = replace(LIMITS, output_bytes=10_000)
    _, flood, after = cells("x = 5", "while True: print('x' * 100)", "x", limits=limits)
    assert (flood.status, flood.error) == ("output_limit", "printed more than 10000 bytes; the state is kept")
    assert len(flood.stdout) == 10_000
    assert (after.status, after.value, after.stdout) == ("ok", "5", "")


def test_a_late_interrupt_does_not_hit_the_next_cell(cells):
    code = "import time\nuntil = time.monotonic() + 0.499\nwhile time.monotonic() < until: pass"
    executions = cells(*[part for _ in range(5) for part in (code, "sum(range(1000))")], limits=SHORT)
    assert [execution.value for execution in executions[1::2]] == ["499500"] * 5


def test_replies_that_a_cell_forges_change_nothing_afterwards(cells):
    forge = "import json, os\nfor n in (1, 2, 3):\n    data = json.dumps({'cell': n, 'status': 'ok', 'value': 'forged'}).encode()\n"
    forge += "    os.write(3, len(data).to_bytes(4, 'little') + data)"
    first, second = cells(forge, "1 + 1")
    assert (second.status, second.value) in (("ok", "2"), ("ok", "forged"))  # its own words, either way
    garbage, after = cells("import os\nos.write(3, b'\\xff' * 1000)", "1 + 1")
    assert garbage.status == "error"
    assert (after.status, after.value) == ("ok", "2")


def test_cpu_time_adds_up_without_an_end(cells):
    busy = "import time\nuntil = time.process_time() + 0.6\nwhile time.process_time() < until: pass"
    executions = cells(busy, busy, "1", limits=replace(LIMITS, cpu_s=1))
    assert [execution.status for execution in executions] == ["ok"] * 3


def test_a_closed_session_refuses_cells(box):
    async def play():
        session = await box.sandbox.session()
        await session.close()
        await session.execute("1")

    with pytest.raises(SandboxError, match="closed"):
        box.wait(play())


def test_a_cancelled_cell_does_not_answer_for_the_next(box):
    async def play():
        session = await box.sandbox.session()
        await session.execute("x = 5")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await session.execute("import time\ntime.sleep(1)\n'slow'")
        after = await session.execute("'fast'")
        await session.close()
        return after

    assert box.wait(play()).value == "'fast'"


def unique_bytes(pid):
    """Memory that would come back if the process ended; resident memory of its own where that is not told."""
    try:
        words = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
        return sum(int(words[words.index(name) + 1]) for name in ("Private_Clean:", "Private_Dirty:")) * 1024
    except PermissionError as error:
        pytest.skip(f"its memory cannot be read: {error}")


def test_a_hundred_sessions_are_small_and_separate(box, below):
    async def play():
        sessions = await asyncio.gather(*[box.sandbox.session() for _ in range(100)])
        try:
            assert [(await s.execute(f"x = {n}")).status for n, s in enumerate(sessions)] == ["ok"] * 100
            assert [(await s.execute("x")).value for s in sessions] == [str(n) for n in range(100)]
            return [unique_bytes(pid) for pid in below(box.sandbox.facts["pid"])] if os.geteuid() == 0 else [1] * 100
        finally:
            await asyncio.gather(*[session.close() for session in sessions])

    sizes = box.wait(play())
    assert len(sizes) == 100
    assert max(sizes) <= 5 << 20
    assert below(box.sandbox.facts["pid"]) == set()
