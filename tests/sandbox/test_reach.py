"""What a program in the sandbox can read, write, connect to and signal: nothing of the host's."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

import rlft.errors
from rlft.sandbox.types import Limits

READ = """
import json, os
leaks = []
for path in {paths!r}:
    try:
        with open(path, "rb") as file:
            if file.read(100):
                leaks.append(path)
    except OSError as error:
        pass
if "RLFT_TEST_SECRET" in os.environ:
    leaks.append("env")
print(json.dumps(leaks))
"""


@pytest.fixture
def answers(open_folder):
    path = open_folder / "answers.json"
    path.write_text("42")
    path.chmod(0o600)
    return path


def test_nothing_of_the_host_can_be_read(box, plain, answers):
    parent = f"/proc/{os.getpid()}"
    paths = ["/etc/passwd", rlft.errors.__file__, str(answers), f"{parent}/environ", f"{parent}/cmdline"]
    paths += ["/proc/self/environ", f"/proc/{box.sandbox.facts['pid']}/environ"]
    code = READ.format(paths=paths)
    assert box.found(code) == []
    assert set(plain(code)) >= {"/etc/passwd", rlft.errors.__file__, str(answers), f"{parent}/environ", f"{parent}/cmdline", "env"}


def test_an_open_descriptor_of_the_host_is_not_inherited(box, answers):
    code = "import json, os\nfound = []\nfor fd in range(4, 1000):\n    try:\n        os.fstat(fd)\n        found.append(fd)\n"
    code += "    except OSError:\n        pass\nprint(json.dumps(found))"
    with answers.open() as file:
        os.set_inheritable(file.fileno(), True)
        assert box.found(code) == []


WRITE = """
import json, os
written = []
for folder in {folders!r}:
    try:
        with open(os.path.join(folder, {name!r}), "w") as file:
            file.write("x")
        written.append(folder)
    except OSError:
        pass
print(json.dumps(written))
"""


def test_no_file_of_the_host_is_written(box, plain, open_folder):
    name = f"rlft-written-{os.getpid()}"
    folders = [str(open_folder), "/var/tmp", "/dev/shm", "/tmp"]
    outside = [*folders, sysconfig.get_path("purelib"), "/", "/etc", "/job", os.path.dirname(os.__file__)]
    box.run(WRITE.format(folders=outside, name=name))
    assert [folder for folder in outside if os.path.exists(os.path.join(folder, name))] == []
    assert plain(WRITE.format(folders=folders, name=name)) == folders
    for folder in folders:
        os.remove(os.path.join(folder, name))


def test_metadata_of_a_file_of_the_host_is_not_changed(box, plain, answers):
    code = f"import json, os\npath = {str(answers)!r}\ndone = []\n"
    code += "for name, args in [('chmod', (0o644,)), ('utime', ((0, 0),)), ('truncate', (0,)), ('setxattr', ('user.x', b'1'))]:\n"
    code += "    try:\n        getattr(os, name)(path, *args)\n        done.append(name)\n    except OSError:\n        pass\n"
    code += "print(json.dumps(done))"
    before = answers.stat()
    assert box.found(code) == []
    after = answers.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)
    assert {"chmod", "utime", "truncate"} <= set(plain(code))


CONNECT = """
import json, socket
made = []
def attempt(name, *steps):
    try:
        with socket.socket(*steps[0]) as sock:
            getattr(sock, steps[1])(*steps[2:])
            if steps[1] == "connect":
                sock.sendall(b"x")
        made.append(name)
    except OSError:
        pass
attempt("tcp", (socket.AF_INET, socket.SOCK_STREAM), "connect", ("127.0.0.1", {tcp}))
attempt("udp", (socket.AF_INET, socket.SOCK_DGRAM), "sendto", b"x", ("127.0.0.1", {udp}))
attempt("bind", (socket.AF_INET, socket.SOCK_STREAM), "bind", ("127.0.0.1", 0))
attempt("path", (socket.AF_UNIX, socket.SOCK_STREAM), "connect", {path!r})
attempt("abstract", (socket.AF_UNIX, socket.SOCK_STREAM), "connect", {abstract!r})
attempt("raylet", (socket.AF_UNIX, socket.SOCK_STREAM), "connect", {raylet!r})
print(json.dumps(made))
"""


@contextlib.contextmanager
def listeners(folder):
    """Six things to connect to, and a function that tells which have been."""
    with contextlib.ExitStack() as stack:
        raylet = folder / "session_latest" / "sockets" / "raylet"
        raylet.parent.mkdir(parents=True)
        abstract = f"\0rlft-test-{os.getpid()}"
        addresses = [("tcp", socket.AF_INET, ("127.0.0.1", 0)), ("udp", socket.AF_INET, ("127.0.0.1", 0))]
        unix = [("path", str(folder / "s")), ("abstract", abstract), ("raylet", str(raylet))]
        sockets = {}
        for name, family, address in [*addresses, *[(name, socket.AF_UNIX, path) for name, path in unix]]:
            kind = socket.SOCK_DGRAM if name == "udp" else socket.SOCK_STREAM
            sockets[name] = stack.enter_context(socket.socket(family, kind))
            sockets[name].bind(address)
            sockets[name].settimeout(0)
            if kind == socket.SOCK_STREAM:
                sockets[name].listen()

        def reached():
            found = []
            for name, sock in sockets.items():
                with contextlib.suppress(BlockingIOError):
                    sock.recv(1) if name == "udp" else sock.accept()[0].close()
                    found.append(name)
            return found

        ports = {name: sockets[name].getsockname()[1] for name in ("tcp", "udp")}
        yield CONNECT.format(**ports, path=str(folder / "s"), abstract=abstract, raylet=str(raylet)), reached


def test_no_socket_is_reached(box, plain, open_folder):
    with listeners(open_folder) as (code, reached):
        assert box.found(code) == []
        assert reached() == []
        assert plain(code) == ["tcp", "udp", "bind", "path", "abstract", "raylet"]
        assert reached() == ["tcp", "udp", "path", "abstract", "raylet"]


def test_a_datagram_to_a_socket_by_its_path_is_not_sent(box, plain, open_folder):
    code = "import json, socket\nsent = 0\ntry:\n    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    code += f"    sent = one.sendto(b'x', {str(open_folder / 'd')!r})\nexcept OSError:\n    pass\nprint(json.dumps(sent))"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(open_folder / "d"))
        assert (box.found(code), plain(code)) == (0, 1)


def test_asyncio_and_threads_still_work(box):
    code = "import asyncio, threading\nasync def f():\n    await asyncio.sleep(0)\n    return await asyncio.to_thread(lambda: 5)\n"
    assert box.run(code + "print(asyncio.run(f()))").stdout == "5\n"


LOCK = """
import errno, fcntl, json, os
def tried(lock):
    with open(os.__file__) as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return errno.errorcode[error.errno]
    return "locked"
print(json.dumps([tried(fcntl.flock), tried(fcntl.lockf)]))
"""


def test_a_file_of_the_host_is_not_locked(box, plain):
    assert box.found(LOCK)[0] == "EPERM" and box.found(LOCK)[1] != "locked"
    assert plain(LOCK)[0] == "locked"


SIGNAL = {
    "parent": "os.kill(os.getppid(), 9)",
    "test": "os.kill({test}, 9)",
    "server": "os.kill({server}, 9)",
    "victim": "os.kill({victim}, 9)",
    "group": "os.kill(0, 9)",
    "everyone": "os.kill(-1, 9)",
    "queue": "ctypes.CDLL(None).sigqueue({victim}, 9, 0)",
    "thread": "signal.pthread_kill({victim}, 9) if 0 else ctypes.CDLL(None).syscall(200, {victim}, 9)",
    "pidfd": "signal.pidfd_send_signal(os.pidfd_open({victim}), 9)",
    "owner": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, {victim}); fcntl.fcntl(0, 10, 9)",
    "ptrace": "ctypes.CDLL(None).ptrace(16, {victim}, 0, 0)",
    "memory": "open('/proc/{victim}/mem', 'r+b')",
    "vm": "ctypes.CDLL(None).process_vm_readv({victim}, 0, 0, 0, 0, 0)",
}


@pytest.mark.parametrize("name", SIGNAL)
def test_other_processes_survive(box, victim, name):
    server = box.sandbox.facts["pid"]
    code = "import ctypes, os, signal\n" + SIGNAL[name].format(test=os.getpid(), server=server, victim=victim.pid)
    assert box.run(code).status in ("ok", "denied", "error", "crashed")
    assert victim.poll() is None
    assert box.run("print(1)").stdout == "1\n"
    assert box.sandbox.facts["pid"] == server
    assert Path(f"/proc/{victim.pid}/status").read_text().split("TracerPid:")[1].split()[0] == "0"


@pytest.mark.parametrize("name", ["victim", "pidfd"])
def test_unconfined_the_same_code_kills(plain, victim, name):
    plain("import ctypes, os, signal\n" + SIGNAL[name].format(victim=victim.pid) + "\nprint(0)")
    assert victim.wait(10) == -9


def test_a_process_that_the_program_started_can_be_waited_for(box):
    code = "import subprocess, sys\nran = subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True)\n"
    execution = box.run(code + "print(ran.stdout)")
    assert execution.stdout.strip() == "42", execution


SURFACE = """
import ctypes, json, os, platform
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
x86 = platform.machine() == "x86_64"
numbers = {
    "unshare user": (272 if x86 else 97, 0x10000000), "bpf": (321 if x86 else 280, 0, 0, 0),
    "io_uring_setup": (425, 1, ctypes.addressof(ctypes.create_string_buffer(256))),
    "userfaultfd": (323 if x86 else 282, 1), "perf_event_open": (298 if x86 else 241, 0, 0, -1, -1, 0),
    "keyctl": (250 if x86 else 219, 0, -3, 0), "ptrace": (101 if x86 else 117, 0, 0, 0, 0), "unknown": (9999, 0),
    "clone user": (56 if x86 else 220, 0x10000011, 0, 0, 0, 0), "clone3": (435, 0, 0), "socket": (41 if x86 else 198, 1, 1, 0),
    "io_setup": (206 if x86 else 0, 1, 0), "mount": (165 if x86 else 40, 0, 0, 0, 0, 0),
}
if x86:
    numbers["x32 getpid"] = (39 | 0x40000000,)

def int80():
    import mmap
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes([0x53, 0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0x5b, 0xc3]))  # getpid by the 32-bit gate
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

def attempt(call):
    child = os.fork()
    if child == 0:
        try:
            refused = call() < 0 and ctypes.get_errno() in (1, 13, 38)
        except BaseException:
            refused = True
        os._exit(1 if refused else 0)
    return os.waitpid(child, 0)[1] == 0

allowed = [name for name, words in numbers.items() if attempt(lambda: libc.syscall(*map(ctypes.c_long, words)))]
if x86 and attempt(int80):
    allowed.append("int80")
print(json.dumps(allowed))
"""


def test_the_surface_of_the_kernel_is_closed(box, plain):
    assert box.found(SURFACE) == []
    assert {"unshare user", "bpf", "socket", "keyctl", "ptrace"} <= set(plain(SURFACE))


LOOK = """
import contextlib, json, os, time
marker = "job-{me}-" + "marker"
with contextlib.suppress(OSError):
    open("marker-{me}", "w").write(marker)
found = []
until = time.monotonic() + {seconds}
while time.monotonic() < until:
    for folder in ("/tmp", "/job/tmp", "/dev/shm", "/var/tmp", {folder!r}, *[{folder!r} + "/%d" % i for i in range(9)]):
        with contextlib.suppress(OSError):
            found += [name for name in os.listdir(folder) if name.startswith("marker-") and name != "marker-{me}"]
    for pid in [*range({first}, {first} + 50), *range(2, 60)]:
        for kind in ("environ", "cmdline", "maps", "mem", "fd/3"):
            with contextlib.suppress(OSError):
                open("/proc/%d/%s" % (pid, kind), "rb").read(1)
                found.append("/proc/%d/%s" % (pid, kind))
        with contextlib.suppress(OSError):
            if pid != os.getpid():
                os.kill(pid, 0)
                found.append("signal to %d" % pid)
print(json.dumps(sorted(set(found))))
"""


def test_jobs_that_run_at_once_do_not_find_each_other(box, below):
    import asyncio

    async def all_at_once():
        first = max([*below(box.sandbox.facts["pid"]), os.getpid()])
        folder = box.sandbox._current().folder or "/job"
        programs = [LOOK.format(me=me, seconds=0.4, folder=folder, first=first) for me in range(8)]
        limits = replace(Limits(), wall_s=20, cpu_s=20)
        return await asyncio.gather(*[box.sandbox.run(code, files={"marker-f": "x"}, limits=limits) for code in programs])

    found = [json.loads(execution.stdout) for execution in box.wait(all_at_once())]
    assert [set(names) - {"marker-f"} for names in found] == [set()] * 8


def test_a_later_job_finds_nothing_of_an_earlier_one(box):
    box.run("open('left', 'w').write('x')", files={"given": "x"})
    assert box.found("import json, os\nprint(json.dumps(os.listdir('.')))") == []


def test_files_are_given_by_relative_paths_only(box):
    assert box.run("print(open('a/b.txt').read())", files={"a/b.txt": "text"}).stdout == "text\n"
    for name in ("/etc/x", "../x", "a/../../x", ""):
        with pytest.raises(ValueError, match="not a path inside"):
            box.run("", files={name: "x"})
