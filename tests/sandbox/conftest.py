"""A started sandbox per tier, shared by the tests, and the same attack code in a plain process as the control."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlft.sandbox.sandbox import Sandbox
from rlft.sandbox.types import Limits

TIERS = os.environ.get("RLFT_TEST_SANDBOX_TIERS", "A,B").split(",")
SECRET = "rlft-secret-4711"


@functools.cache
def why_not(tier):
    """Why this process cannot have a tier; "" if it can."""
    if tier == "A":
        code = "import ctypes, os; libc = ctypes.CDLL(None); raise SystemExit(-libc.unshare(0x20000 if os.geteuid() == 0 else 0x10020000))"
        run = subprocess.run([sys.executable, "-c", code], timeout=60)
        return "namespaces are not allowed here" if run.returncode else ""
    if os.geteuid():
        return ""
    closed = [path for path in needed_folders() if not path.stat().st_mode & 0o1]
    return f"{closed[0]} is closed to the users that tier B becomes as root (see test_other_users.py)" if closed else ""


def needed_folders():
    """Every folder on the way to the interpreter and its packages."""
    for path in (os.path.realpath(sys.executable), os.path.dirname(os.__file__), sysconfig.get_path("purelib")):
        yield from Path(path).parents


@dataclass
class Box:
    """A sandbox with its event loop, driven from tests that are not asynchronous."""

    runner: asyncio.Runner
    sandbox: Sandbox

    def run(self, code, **options):
        return self.wait(self.sandbox.run(code, **options))

    def call(self, code, calls, **options):
        return self.wait(self.sandbox.call(code, calls, **options))

    def wait(self, awaitable):
        async def within():
            async with asyncio.timeout(100):
                return await awaitable

        return self.runner.run(within())

    def found(self, code, **options):
        """What an attack reports: the JSON on the last line that it prints."""
        execution = self.run(code, **options)
        assert execution.status == "ok", execution
        return json.loads(execution.stdout.splitlines()[-1])


@pytest.fixture(scope="session", params=["A", "B"])
def tier(request):
    if request.param not in TIERS:
        pytest.skip("not asked for")
    if why := why_not(request.param):
        pytest.skip(why)
    return request.param


@pytest.fixture(scope="session")
def box(tier):
    os.environ["RLFT_TEST_SECRET"] = SECRET
    with asyncio.Runner() as runner:
        sandbox = Sandbox(Limits(wall_s=20, cpu_s=10), tier=tier, concurrency=8)  # the machine may have other work
        runner.run(sandbox.start())
        yield Box(runner, sandbox)
        runner.run(sandbox.close())
    del os.environ["RLFT_TEST_SECRET"]


@pytest.fixture
def plain():
    """The control: what an attack reports when nothing confines it."""

    def found(code, timeout=60, env=None):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, env=env)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    return found


@pytest.fixture
def open_folder(tmp_path_factory):
    """A folder that every user may enter and write to, outside pytest's private one."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="rlft-open-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.fixture
def victim():
    """A process of the same user, with a secret in its memory."""
    process = subprocess.Popen(["sleep", "60"], env={"SECRET": SECRET})
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


def descendants(root):
    """Process ids of everything below a process, zombies left out."""
    parents = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it has just ended
            if name.isdigit():
                state, parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(name)] = int(parent)
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


@pytest.fixture
def below():
    return descendants


@pytest.fixture(name="why_not")
def why_not_fixture():
    return why_not


@pytest.fixture(name="proportional")
def proportional_fixture():
    return proportional


@pytest.fixture
def memory_peak():
    """A context that samples the memory of all processes below one; gives a function that tells the highest sum in bytes.

    `shared`: bytes of each that it has from the one above.
    """

    @contextlib.contextmanager
    def sampled(root, shared=0):
        highest, stop = [0], threading.Event()

        def sample():
            while not stop.wait(0.002):
                highest[0] = max(highest[0], sum(max(0, proportional(pid) - shared) for pid in descendants(root)))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield lambda: highest[0]
        finally:
            stop.set()
            thread.join()

    return sampled


def proportional(pid):
    """Bytes of memory that are a process's own, shared ones divided among those that share; all of them if that is not told."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
        return sum(int(words[words.index(name) + 1]) for name in ("Pss_Anon:", "Pss_Shmem:") if name in words) * 1024
    with contextlib.suppress(OSError, ValueError):
        words = Path(f"/proc/{pid}/status").read_text().split()
        return sum(int(words[words.index(name) + 1]) for name in ("RssAnon:", "RssShmem:")) * 1024
    return 0
