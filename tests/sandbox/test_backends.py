"""Sandboxes other than the local one: bubblewrap, HTTP in SandboxFusion's format, and the unprotected one."""

import asyncio
import base64
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from rlft.errors import SandboxError
from rlft.sandbox import printed
from rlft.sandbox.backends import open_sandbox
from rlft.sandbox.bubblewrap import Bubblewrap
from rlft.sandbox.remote import RemoteSandbox
from rlft.sandbox.serve import make_app
from rlft.sandbox.types import Execution, Limits
from rlft.sandbox.unsafe import UnsafeSandbox

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bwrap is not installed (package bubblewrap)")
SHORT = Limits(wall_s=1.0, cpu_s=1.0, memory_mb=256, output_bytes=10_000, disk_mb=8, processes=16)
PATIENT = Limits(wall_s=20.0, cpu_s=20.0)
ADD = "import sys\ndef add(a, b):\n    print('adding')\n    return (a + b, [a], {b})"


def bash(code, limits=SHORT, **options):
    return asyncio.run(Bubblewrap("bash").run(code, limits=limits, **options))


@needs_bwrap
def test_a_program_reads_its_input_and_files_and_is_heard():
    ran = bash("cat; cat sub/x.txt; echo oops >&2; pwd", stdin="in\n", files={"sub/x.txt": "x\n"})
    assert (ran.status, ran.stdout, ran.stderr, ran.error) == ("ok", "in\nx\n/tmp\n", "oops\n", "")


@needs_bwrap
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", "read a b; echo $((a + b))"),
        ("c", '#include <stdio.h>\nint main(){int a,b; scanf("%d %d",&a,&b); printf("%d\\n",a+b);}'),
        ("cpp", "#include <iostream>\nint main(){int a,b; std::cin>>a>>b; std::cout<<a+b<<std::endl;}"),
        ("javascript", "const [a,b]=require('fs').readFileSync(0,'utf8').split(' ').map(Number); console.log(a+b)"),
        ("perl", "my ($a,$b)=split ' ',<STDIN>; print $a+$b,\"\\n\""),
        ("python", "print(sum(map(int, input().split())))"),
    ],
)
def test_languages_run(language, code):
    tool = {"c": "cc", "cpp": "c++", "javascript": "node", "python": "python3"}.get(language, language)
    if shutil.which(tool, path="/usr/bin:/bin:/usr/local/bin") is None:
        pytest.skip(f"{tool} is not installed in the system's folders")
    assert asyncio.run(Bubblewrap(language).run(code, stdin="2 3\n", limits=PATIENT)).stdout == "5\n"


@needs_bwrap
@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("exit 3", "error", "exit status 3"),
        ("no-such-program", "error", "no-such-program: command not found"),
        ("sleep 60", "timeout", "limit of 1 s"),
        ("trap '' TERM INT; while :; do sleep 1; done", "timeout", "limit of 1 s"),
        ("while :; do :; done", "timeout", ""),
        ("yes", "output_limit", "more than 10000 bytes"),
        ("kill -SEGV $$", "crashed", "signal 11"),
    ],
)
def test_how_a_program_ends_is_told(code, status, error):
    started = time.monotonic()
    ran = bash(code)
    assert ran.status == status and error in ran.error
    assert len(ran.stdout) <= SHORT.output_bytes
    assert time.monotonic() - started < 15


@needs_bwrap
@pytest.mark.parametrize(
    ("attack", "means"),
    [
        ("cat /etc/passwd", "No such file"),
        (f"ls {os.getcwd()}", "No such file"),
        ("touch /usr/x", "Read-only"),
        ("touch /x", "Read-only"),
        ("touch /dev/x", "Read-only"),
        ("exec 3<>/dev/tcp/127.0.0.1/{port}", "not permitted"),
        ("head -c 20000000 /dev/zero > big", "File size limit|No space|File too large"),
        ("for i in 1 2 3; do head -c 4000000 /dev/zero > $i; done", "No space"),
        ("head -c 3000000 /dev/zero > /dev/shm/x", "No space"),
        ("unshare -U true", "not permitted"),
        ("mount -t tmpfs x /tmp", "superuser|not permitted|denied"),
        ("kill -9 {pid}", "No such process"),
        ("cat /proc/{pid}/environ", "No such file"),
        ("perl -e '$x = \"a\" x (1 << 30)'", "memory"),
        ("for i in $(seq 40); do sleep 5 & done; wait", "Resource temporarily unavailable"),
    ],
)
def test_attacks_fail(attack, means):
    import re

    with socket.create_server(("127.0.0.1", 0)) as server:
        code = attack.replace("{port}", str(server.getsockname()[1])).replace("{pid}", str(os.getpid()))
        ran = bash(code)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert ran.status != "ok" or "seq 40" in attack or "in 1 2 3" in attack
    assert re.search(means, ran.stderr + ran.error), ran


@needs_bwrap
def test_the_environment_is_empty_and_no_descriptor_is_inherited(monkeypatch, tmp_path):
    monkeypatch.setenv("RLFT_SECRET", "tell no one")
    with open(tmp_path / "f", "w") as file:
        os.set_inheritable(file.fileno(), True)
        ran = bash("env; ls /proc/self/fd; id -u")
    assert "tell no one" not in ran.stdout
    assert ran.stdout.split()[-5:-1] == ["0", "1", "2", "3"] and int(ran.stdout.split()[-1]) != 0 or os.geteuid() != 0


@needs_bwrap
def test_no_process_is_left_behind():
    name = f"3{os.getpid()}"
    ran = bash(f"setsid sleep {name} & (sleep {name} &) ; sleep {name} & echo done")
    assert "done" in ran.stdout
    until = time.monotonic() + 10
    while left := [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] and name in p.info["cmdline"]]:
        assert time.monotonic() < until, left


@needs_bwrap
@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", ""])
def test_a_file_cannot_be_put_outside_of_the_scratch_folder(name):
    with pytest.raises(ValueError, match="scratch folder"):
        bash("true", files={name: ""})


@needs_bwrap
def test_a_sandbox_that_cannot_be_set_up_is_an_error(monkeypatch, tmp_path):
    with pytest.raises(SandboxError, match="cannot set up its sandbox: bwrap: .*Not a directory"):
        asyncio.run(Bubblewrap("bash", read_only=["/usr/bin/env/x"]).execute(["true"]))
    assert asyncio.run(Bubblewrap("bash").execute(["/no/such/program"])).status == "error"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="install the package bubblewrap"):
        Bubblewrap("bash")


def test_a_language_that_is_not_known_is_an_error():
    with pytest.raises(SandboxError, match="expected one of bash"):
        Bubblewrap("cobol")


@contextmanager
def served(app):
    """A real HTTP server on this machine; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def url():
    with served(make_app(token="t0ken", selftest=False)) as address:
        yield address


def remotely(url, do, **options):
    async def main():
        sandbox = RemoteSandbox(url, **{"token": "t0ken", **options})
        try:
            return await do(sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("1 / 0", "error", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "error", "exit"),
        ("while True: pass", "timeout", ""),
        ("x = bytearray(1 << 30)", "oom", ""),
        ("import ctypes; ctypes.string_at(0)", "crashed", ""),
        ("import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)", "denied", ""),
        ("while True: print('x' * 1000)", "output_limit", ""),
    ],
)
def test_a_remote_execution_ends_as_a_local_one(url, code, status, error):
    ran = remotely(url, lambda sandbox: sandbox.run(code, limits=SHORT))
    assert ran.status == status and error in ran.error


def test_a_remote_program_reads_its_input_and_files(url):
    ran = remotely(url, lambda sandbox: sandbox.run("print(input(), open('a/b.txt').read())", stdin="in", files={"a/b.txt": "é"}))
    assert (ran.status, ran.stdout) == ("ok", "in é\n") and ran.wall_s > 0


def test_remote_calls_give_values_of_exact_types(url):
    calls = [("add", (1, 2), {}), ("add", ("x",), {"b": "y"}), ("add", (1,), {}), ("nothing", (), {})]
    ran = remotely(url, lambda sandbox: sandbox.call(ADD, calls))
    assert [(r.status, r.value) for r in ran] == [("ok", (3, [1], {2})), ("ok", ("xy", ["x"], {"y"})), ("error", None), ("error", None)]
    assert "TypeError" in ran[2].error and "NameError" in ran[3].error and ran[0].stdout == "adding\nadding\n"


def test_executions_run_side_by_side(url):
    async def many(sandbox):
        return await asyncio.gather(*(sandbox.run(f"print({i})") for i in range(30)))

    assert [ran.stdout for ran in remotely(url, many)] == [f"{i}\n" for i in range(30)]


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_the_token_nothing_is_run(url, token):
    with pytest.raises(SandboxError, match="HTTP 401: .*token"):
        remotely(url, lambda sandbox: sandbox.run("print(1)"), token=token)


def test_the_server_runs_python_only(url):
    with pytest.raises(SandboxError, match="HTTP 422: .*language 'python'"):
        remotely(url, lambda sandbox: sandbox.run("print(1)"), language="cobol")


def finished(stdout="hi\n", **changes):
    result = {"status": "Finished", "execution_time": 0.5, "return_code": 0, "stdout": stdout, "stderr": "", **changes}
    return {"status": "Success", "message": "", "compile_result": None, "run_result": result, "files": {}}


def answering(*answers):
    """A server that gives these answers in turn, the last one for ever, and keeps what it was asked."""
    app, left = FastAPI(), list(answers)
    app.state.asked = []

    @app.post("/run_code")
    async def run_code(request: Request):
        app.state.asked.append(await request.json())
        return left.pop(0) if len(left) > 1 else left[0]

    run_code.__annotations__["request"] = Request
    return app


def test_a_request_is_in_the_format_of_sandbox_fusion():
    app = answering(finished())
    with served(app) as address:
        options = {"language": "cpp", "compile_s": 7}
        ran = remotely(address, lambda sandbox: sandbox.run("code", stdin="in", files={"f": "x"}, limits=SHORT), **options)
    assert ran == Execution("ok", "hi\n", "", wall_s=0.5)
    assert app.state.asked == [
        {
            "code": "code",
            "language": "cpp",
            "stdin": "in",
            "run_timeout": 1.0,
            "compile_timeout": 7,
            "memory_limit_MB": 256,
            "files": {"f": base64.b64encode(b"x").decode()},
            "fetch_files": [],
        }
    ]


BUSY = Response("busy", 503)
BROKEN = {"status": "SandboxError", "message": "no room", "compile_result": None, "run_result": None, "files": {}}


def test_a_busy_or_broken_server_is_asked_again():
    app = answering(BUSY, BROKEN, Response("slow down", 429), finished())
    with served(app) as address:
        assert remotely(address, lambda sandbox: sandbox.run("code")).stdout == "hi\n"
    assert len(app.state.asked) == 4


@pytest.mark.parametrize(
    ("answer", "message", "tries"),
    [
        (BUSY, "HTTP 503: busy", 2),
        (BROKEN, "an error of its own: no room", 2),
        (Response("no", 400), "HTTP 400: no", 1),
        ("text", "in another format", 1),
        (Response("<html>"), "in another format: <html>", 1),
        ({"status": "Success", "run_result": None}, "no run_result", 1),
        (finished(return_code=None), "does not say how", 1),
    ],
)
def test_a_server_that_runs_nothing_is_an_error_not_a_verdict(answer, message, tries):
    app = answering(answer)
    with served(app) as address, pytest.raises(SandboxError, match=message):
        remotely(address, lambda sandbox: sandbox.run("code", limits=SHORT), patience_s=0.5)
    assert len(app.state.asked) >= tries and (tries > 1 or len(app.state.asked) == 1)


def test_a_server_that_is_not_there_or_says_nothing_is_an_error_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SandboxError, match="ran nothing"):
            remotely(address, lambda sandbox: sandbox.run("code", limits=Limits(wall_s=0.1)), patience_s=0.3)
    with pytest.raises(SandboxError, match="ran nothing: ConnectError"):
        remotely(address, lambda sandbox: sandbox.run("code", limits=Limits(wall_s=0.1)), patience_s=0.3)


@pytest.mark.parametrize(
    ("reply", "status", "error"),
    [
        ({**finished(), "compile_result": finished(return_code=1, stderr="x.c:1: error")["run_result"]}, "error", "x.c:1: error"),
        (finished(return_code=1, stderr="Traceback\nMemoryError\n"), "oom", "MemoryError"),
        (finished(return_code=-9), "oom", "killed"),
        (finished(return_code=-11), "crashed", "signal 11"),
        (finished(status="TimeLimitExceeded", return_code=None), "timeout", "time limit"),
        (finished("x" * 20_000), "output_limit", "10000 bytes"),
    ],
)
def test_replies_of_other_servers_are_understood(reply, status, error):
    with served(answering(reply)) as address:
        ran = remotely(address, lambda sandbox: sandbox.run("code", limits=SHORT))
    assert ran.status == status and error in ran.error


def unsafely(code, limits=SHORT, **options):
    return asyncio.run(UnsafeSandbox(allow_unsafe=True).run(code, limits=limits, **options))


def test_nothing_runs_unprotected_unless_that_is_said():
    for meant in ({}, {"allow_unsafe": False}, {"allow_unsafe": 1}):
        with pytest.raises(SandboxError, match="allow_unsafe = true"):
            asyncio.run(open_sandbox("unsafe", **meant))
    assert unsafely("print(input(), open('x').read())", stdin="in", files={"x": "y"}).stdout == "in y\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [("1 / 0", "error"), ("while True: pass", "timeout"), ("import time; time.sleep(60)", "timeout"), ("x = bytearray(1 << 30)", "oom")]
    + [("while True: print('x' * 1000)", "output_limit"), ("import os; os.kill(os.getpid(), 11)", "crashed")],
)
def test_an_unprotected_program_still_has_limits(code, status):
    assert unsafely(code).status == status


def test_cpu_time_of_an_unprotected_program_runs_out_as_a_timeout():
    ran = unsafely("while True: pass", replace(SHORT, wall_s=30.0))
    assert (ran.status, ran.error) == ("timeout", f"ended by signal {signal.SIGXCPU:d}")


@pytest.mark.parametrize("name", ["docker", "", "ftp://host", "Local"])
def test_there_is_no_other_sandbox_by_chance(name):
    with pytest.raises(SandboxError, match="expected 'local'"):
        asyncio.run(open_sandbox(name))


def test_a_remote_sandbox_takes_its_token_from_the_environment(url, monkeypatch):
    monkeypatch.setenv("RLFT_SANDBOX_TOKEN", "t0ken")

    async def main():
        sandbox = await open_sandbox(url)
        try:
            return await sandbox.run("print(1)")
        finally:
            await sandbox.close()

    assert asyncio.run(main()).stdout == "1\n"


@pytest.mark.parametrize(
    ("stdout", "values"),
    [
        ('\x02rlft [0, true, "1"]\n\x02rlft [1, true, "2"]\n', [1, 2]),
        ('\x02rlft [0, true, "1"]\n\x02rlft [0, true, "7"]\n\x02rlft [1, true, "2"]\n', [1, 2]),
        ('no newline\x02rlft [0, true, "1"]\n', [1, None]),
        ('\x02rlft [0, true, "NaN"]\n\x02rlft [1, true, "{}"]\n', [None, None]),
        ('\x02rlft {"0": 1}\n\x02rlft [2, true, "1"]\n\x02rlft [-1, true, "1"]\n\x02rlft nonsense\n\x02rlft [[[', [None, None]),
    ],
)
def test_what_is_not_printed_as_a_value_is_none(stdout, values):
    assert [ran.value for ran in printed.read(Execution("ok", stdout), 2)] == values
