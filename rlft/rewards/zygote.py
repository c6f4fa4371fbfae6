"""The fork server of the grading processes: it loads the grader once, so that replacing a process costs one fork.

It runs no reward itself. Orders and replies are JSON messages on one socket: {"end": pid or null}, with a
connection for a new process attached, is answered by {"pid": new, "status": how the old one ended}.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import pickle
import signal
import socket
import sys
import traceback
from pathlib import Path

from rlft.errors import explain
from rlft.rewards.grader import MAX_ERROR, Rule, Term
from rlft.rewards.serve import serve

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MAX_MESSAGE = 65536


def main(control_fd: int, parent: int) -> None:
    """Load the pickled grader from standard input, then fork on demand until the other end closes."""
    control = socket.socket(fileno=control_fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _die_with(parent, signal.SIGKILL)  # loading runs a user's code, which may hang
    try:
        rules: list[Rule]
        rules, functions = pickle.loads(sys.stdin.buffer.read())
        grader = [Term(rule, fn) for rule, fn in zip(rules, pickle.loads(functions), strict=True)]
    except BaseException as error:
        control.send(json.dumps({"error": explain(error)[:MAX_ERROR]}).encode())
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    gc.freeze()  # collections in the children do not touch, and so copy, what they share
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of a killed process end here, not as someone's zombies
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _die_with(parent, signal.SIGTERM)
    children: set[int] = set()
    try:
        control.send(b'{"ready": true}')
        with contextlib.suppress(ConnectionError):  # the other end may go without reading all it was told
            _obey(control, grader, children)
    finally:
        for pid in children:
            _end(pid)


def _obey(control: socket.socket, grader: list[Term], children: set[int]) -> None:
    while True:
        message, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        old, status = json.loads(message)["end"], None
        if old in children:
            children.remove(old)
            status = _end(old)
        _reap_orphans(children)
        with socket.socket(fileno=fds[0]) as connection:
            pid = _fork(control, connection, grader)
        children.add(pid)
        control.send(json.dumps({"pid": pid, "status": status}).encode())


def _fork(control: socket.socket, connection: socket.socket, grader: list[Term]) -> int:
    zygote = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # the child did it first, or is gone
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)
        control.close()
        os.setpgid(0, 0)  # what a reward starts is killed with it
        _die_with(zygote, signal.SIGKILL)
        with contextlib.suppress(OSError):  # short of memory, the kernel takes this process first
            Path("/proc/self/oom_score_adj").write_text("1000")
        with contextlib.suppress(ConnectionError):  # the caller has gone: rewards' own errors are answers
            serve(connection, grader)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(pid: int) -> int:
    """Kill a child with its process group and reap it. Its exit status, or minus the signal that ended it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _reap_orphans(children: set[int]) -> None:
    """Reap what killed children left behind. A child that ended by itself keeps its status until it is asked for."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in children:
            os.waitpid(ended.si_pid, 0)


def _die_with(parent: int, by: signal.Signals) -> None:
    _prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it died before the request took effect
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
