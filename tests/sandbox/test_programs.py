"""Programs behave as under `python main.py`: the same ones earn the same in every tier and backend, and in plain Python."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlft.sandbox.bubblewrap import Bubblewrap
from rlft.sandbox.types import RUNTIME, Limits
from rlft.sandbox.unsafe import UnsafeSandbox

sys.path.insert(0, str(Path(__file__).parent))
from programs import CALLS, FUNCTIONS, RIGHT, WRITES, WRONG  # noqa: E402

PATIENT = Limits(wall_s=20.0, cpu_s=10.0)
RIGHTS = {**dict.fromkeys(RIGHT, True), **dict.fromkeys(WRONG, False)}


async def verdicts(run, cases, at_once=4):
    """By program: whether it ended well and printed what is expected."""
    turns = asyncio.Semaphore(at_once)

    async def verdict(code, stdin, expected):
        async with turns:
            ran = await run(code, stdin=stdin, limits=PATIENT)
        return ran.status == "ok" and ran.stdout == expected

    return dict(zip(cases, await asyncio.gather(*(verdict(*case) for case in cases.values())), strict=True))


def plainly(code, stdin, expected, folder):
    (folder / "main.py").write_bytes(code.encode())
    ran = subprocess.run([sys.executable, "main.py"], input=stdin.encode(), capture_output=True, timeout=60, cwd=folder, env=RUNTIME)
    return ran.returncode == 0 and ran.stdout.decode() == expected


def test_there_are_forty_programs_and_wrong_ones_among_them():
    assert len(RIGHTS) >= 40 and len(WRONG) >= 10 and not RIGHT.keys() & WRONG.keys()


@pytest.mark.slow
def test_plain_python_gives_the_expected_verdicts(tmp_path):
    cases = {**RIGHT, **WRONG, **WRITES}
    found = {name: plainly(*case, tmp_path) for name, case in cases.items()}
    assert found == {**RIGHTS, **dict.fromkeys(WRITES, True)}


def test_each_tier_gives_the_verdicts_of_plain_python(box):
    assert box.wait(verdicts(box.sandbox.run, {**RIGHT, **WRONG})) == RIGHTS


def test_a_tier_with_a_scratch_folder_lets_programs_write(box, tier):
    writes = box.wait(verdicts(box.sandbox.run, WRITES))
    assert writes == dict.fromkeys(WRITES, tier == "A")  # in tier B the folder is read-only


@pytest.mark.slow
def test_without_protection_the_verdicts_are_those_of_plain_python():
    sandbox = UnsafeSandbox(allow_unsafe=True)
    assert asyncio.run(verdicts(sandbox.run, {**RIGHT, **WRONG, **WRITES})) == {**RIGHTS, **dict.fromkeys(WRITES, True)}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bwrap is not installed (package bubblewrap)")
def test_bubblewrap_gives_the_verdicts_of_plain_python():
    if shutil.which("python3", path="/usr/bin:/bin") is None:
        pytest.skip("there is no python3 in the system's folders")
    found = asyncio.run(verdicts(Bubblewrap("python").run, {**RIGHT, **WRONG, **WRITES}))
    assert found == {**RIGHTS, **dict.fromkeys(WRITES, True)}


def returned(executions):
    return [execution.value if execution.status == "ok" else None for execution in executions]


def test_functions_are_called_alike_in_each_tier(box):
    assert returned(box.call(FUNCTIONS, [(name, args, {}) for name, args in CALLS], limits=PATIENT)) == list(CALLS.values())


def test_functions_are_called_alike_where_only_output_comes_back():
    sandbox = UnsafeSandbox(allow_unsafe=True)
    calls = [(name, args, {}) for name, args in CALLS]
    assert returned(asyncio.run(sandbox.call(FUNCTIONS, calls, limits=PATIENT))) == list(CALLS.values())


def test_a_session_knows_exit_and_keeps_its_state(box):
    async def cells():
        session = await box.sandbox.session()
        try:
            return [await session.execute(code) for code in ("x = 1", "exit()", "x", "len(str(10**5000))")]
        finally:
            await session.close()

    _, left, kept, digits = box.wait(cells())
    assert left.status == "error" and "SystemExit" in left.error and (kept.value, digits.value) == ("1", "5001")
