"""Short attacks on a sandbox that has just started: unless each of them fails, it is not used."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlft.errors import SandboxError
from rlft.sandbox.namespaces import PROBE
from rlft.sandbox.types import RUNTIME, Limits

if TYPE_CHECKING:
    from rlft.sandbox.sandbox import Sandbox

SMALL = Limits(wall_s=5.0, cpu_s=2.0, memory_mb=128, processes=8, disk_mb=2, files=64, output_bytes=10_000)

# Functions that a job is asked to call; each says what it got.
ATTACKS = '''
import ctypes, os, socket

def read(path):
    try:
        with open(path) as file:
            return file.read(1)
    except OSError:
        return ""

def write(folder):
    try:
        with open(folder + "/rlft-was-here", "w") as file:
            return file.write("x")
    except OSError:
        return 0

def network():
    try:
        socket.socket(socket.AF_UNIX)
        socket.socket(socket.AF_INET)
    except OSError:
        return ""
    return "sockets"

def filtered():
    return ctypes.CDLL(None).prctl(21, 0, 0, 0, 0)

def privileges():
    return ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)

def is_root():
    return 0 in os.getresuid() + os.getresgid()

def memfd():
    try:
        return os.memfd_create("x")
    except OSError:
        return -1

def signal_to(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return "signalled"

def fill(disk):
    written = 0
    try:
        for number in range(2 * disk):
            with open(str(number), "wb") as file:
                written += file.write(bytes(1 << 20))
    except OSError:
        return written <= disk << 20
    return written <= disk << 20

def descriptors():
    found = []
    for fd in range(256):
        try:
            os.fstat(fd)
            found.append(fd)
        except OSError:
            continue
    return found

def environment():
    return sorted(os.environ)

def imports():
    import colorsys, sqlite3
    return colorsys.rgb_to_hsv(0, 0, 0)[0]

def forks(limit):
    reading, writing = os.pipe()
    count = 0
    try:
        while count < 2 * limit:
            if os.fork() == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            count += 1
    except OSError:
        return 1 <= count <= limit
    return False
'''

ALLOWED_ENVIRONMENT = {*RUNTIME, "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8", "LC_CTYPE", "HOME", "TMPDIR"}
ALLOWED_ENVIRONMENT |= {"PATH", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"}


def _attacks(sandbox: Sandbox) -> list[tuple[str, list[Any], Any, str]]:
    """(function, arguments, the only acceptable value, what is wrong otherwise)."""
    hidden = [PROBE] if sandbox.tier == "A" else ["/etc/passwd", "/proc/self/environ"]
    landlock = "Landlock is not in force: a program reads {}"
    return [
        *[("read", [path], "", landlock.format(path)) for path in hidden],
        ("read", ["/etc/passwd"], "", "a program reads /etc/passwd"),
        ("filtered", [], 2, "no seccomp filter is in force"),
        ("privileges", [], 1, "a program could gain privileges"),
        ("is_root", [], False, "a program runs as root"),
        *[("write", [folder], 0, f"a program writes to {folder}") for folder in ("/", "/var/tmp", "/dev/shm/..", "/usr/lib")],
        ("network", [], "", "a program makes sockets"),
        ("memfd", [], -1, "a program makes memory files, which no limit counts"),
        ("signal_to", [sandbox.facts["pid"]], "", "a program reaches other processes"),
        ("fill", [SMALL.disk_mb], True, "the scratch folder is not bounded"),
        ("descriptors", [], [0, 1, 2, 3], "a program holds descriptors that are not its own"),
        ("imports", [], 0.0, "a program cannot import the standard library"),
        ("forks", [SMALL.processes], True, "the number of processes is not bounded, or a program cannot fork at all"),
    ]


async def check(sandbox: Sandbox) -> None:
    """Raises SandboxError with the first attack that succeeds, or ordinary thing that does not work."""
    attacks = _attacks(sandbox)
    ends = [
        ("while True: continue", replace(SMALL, wall_s=0.05), "timeout"),
        ("bytearray(1 << 28)", SMALL, "oom"),
        ("print('x' * 20_000, flush=True)\nwhile True: continue", SMALL, "output_limit"),
        ("import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)", SMALL, "denied"),
        ("raise ValueError", SMALL, "error"),
    ]
    calls = [(name, args, {}) for name, args, _, _ in attacks]
    ending = asyncio.gather(*[sandbox.run(code, limits=limits) for code, limits, _ in ends])
    *results, environment = await sandbox.call(ATTACKS, [*calls, ("environment", [], {})], limits=SMALL)
    executions = await ending
    for (name, _, expected, problem), result in zip(attacks, results, strict=True):
        if result.status != "ok":
            raise SandboxError(f"self-test: {problem} ({name}: {result.status}: {result.error or result.stderr[-500:]})")
        if result.value != expected:
            raise SandboxError(f"self-test: {problem} ({name} gave {result.value!r})")
    if environment.status != "ok" or not set(environment.value) <= ALLOWED_ENVIRONMENT:
        raise SandboxError(f"self-test: a program sees the environment {environment.value!r} {environment.error}")
    for (code, _, expected), result in zip(ends, executions, strict=True):
        if result.status != expected:
            why = result.error or result.stderr[-500:]
            raise SandboxError(f"self-test: {code!r} ended as {result.status} instead of {expected}: {why}")
