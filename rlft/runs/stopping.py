"""Ctrl-C and SIGTERM: a guard that ends a command and all it started within seconds, and says in one line what is saved.

The command runs in a fork of the guard, which does nothing but wait: it answers at once, whatever the command is busy
with. All files of a run appear complete or not at all, so nothing needs to be unwound. Only the standard library is
loaded here, before anything else of rlft.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
COMMITTED_S = 2.5  # a command that has saved everything may finish its words
CLEAN_S = 1.5  # what leads a session of its own watches its parent, and cleans up behind itself
KILLED_S = 0.8  # until a killed process is gone
LOOK_S = 0.05
BOARD_BYTES = 4096  # one page: a write to it is whole or has not happened
OVERWRITE = ("train", "sft", "dpo", "train-rm", "eval")  # commands that replace an earlier run only when told to
NEEDS_PROGRESS = "progress.json"  # without it a checkpoint is not complete

_board = -1  # what the command notes for its guard; -1: there is none
_noted: dict[str, Any] = {}


def note(**facts: Any) -> None:
    """Leave word for the guard.

    Args:
        facts: `folder` and `steps` of a run, whether it is `resumable`, what it is `doing`, that it is `over` and has saved
            everything; or what to `say` in place of the guard's own words.
    """
    _noted.update(facts)
    if _board >= 0:
        os.pwrite(_board, json.dumps(_noted).encode().ljust(BOARD_BYTES)[:BOARD_BYTES], 0)


def note_doing(phases: str) -> None:
    """What lasts right now, for the guard: a screen tells it."""
    note(doing=phases)


def leave_signals_to_guard() -> None:
    """Ignore what the guard answers. Not by SIG_IGN, which processes started from here would inherit. Ray puts handlers of its own
    in place, so this is called again when it has."""
    if _board >= 0:
        for number in NAMES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)


def guard(arguments: Sequence[str]) -> None:
    """Fork. Returns in the process that is to run the command; the other one is its guard, and ends with its exit status.

    A first signal ends the command: exit status 130 after Ctrl-C, 143 after SIGTERM, 0 where everything was saved. A second
    Ctrl-C waits for nothing more.

    Args:
        arguments: of the command line, to say how to go on.
    """
    global _board
    answered = {number for number in NAMES if signal.getsignal(number) is not signal.SIG_IGN}
    watched = {*answered, signal.SIGCHLD}
    board = os.memfd_create("rlft")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    if command := os.fork():
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        os._exit(_watch(command, watched, board, arguments))
    _board = board
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    leave_signals_to_guard()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(command: int, watched: set[signal.Signals], board: int, arguments: Sequence[str]) -> int:
    """Wait until the command ends or is to be ended. Returns the exit status."""
    while True:
        number = signal.sigwaitinfo(watched).si_signo
        status = _reap().get(command)
        if status is not None:
            return _ended(status)
        if number == signal.SIGCHLD:
            continue
        told = _read(board)
        status = _wait_for(command, watched, COMMITTED_S) if told.get("over") else None
        if status is not None:
            return _ended(status)
        os.kill(command, signal.SIGKILL)
        left = _end_all(watched)
        told = _read(board)  # again: it went on until it was killed
        _say(f"{last_words(NAMES[signal.Signals(number)], told, arguments)}{left and f'; still running: {left}'}")
        return 0 if told.get("over") else 128 + number


def _wait_for(command: int, watched: set[signal.Signals], limit_s: float) -> int | None:
    """The status with which the command ended by itself; None if it has not, or Ctrl-C came again."""
    deadline = time.monotonic() + limit_s
    while (wait_s := deadline - time.monotonic()) > 0:
        info = signal.sigtimedwait(watched, wait_s)
        status = _reap().get(command)
        if status is not None or (info and info.si_signo == signal.SIGINT):
            return status
    return None


def _end_all(watched: set[signal.Signals]) -> str:
    """Kill everything that the command started. What could not be ended in time, in words.

    What leads a session of its own is given a moment: fork servers and sandboxes see that their parent is gone, and clean up.
    """
    import psutil

    started, session, patience_s = time.monotonic(), os.getsid(0), CLEAN_S
    while left := psutil.Process().children(recursive=True):
        waited = time.monotonic() - started
        for process in left:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if waited >= patience_s or os.getsid(process.pid) == session:
                    process.kill()
        if waited >= patience_s + KILLED_S:
            return ", ".join(str(process.pid) for process in left)
        info = signal.sigtimedwait(watched, LOOK_S)
        if info and info.si_signo == signal.SIGINT:
            patience_s = 0.0
        _reap()
    return ""


def _reap() -> dict[int, int]:
    """Wait status of every child that has ended, orphans of the command's children included."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def _ended(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    _say(f"rlft: its process was ended by {signal.Signals(-code).name}, not by rlft; the machine may be short of memory")
    return 128 - code


def last_words(cause: str, told: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """One line: where a command was stopped, what is saved and how to go on.

    Args:
        cause: what stopped it.
        told: what it had noted.
        arguments: its command line.
    """
    if "say" in told:
        return f"stopped by {cause}: {told['say']}"
    again = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    doing = told.get("doing", "starting")
    if "folder" not in told:  # of a run
        return f"stopped by {cause} ({doing}): nothing is saved; start anew: {_line(arguments)}"
    folder = Path(told["folder"])
    step, saved = _last_step(folder / "metrics.jsonl"), _last_checkpoint(folder / "checkpoints")
    where = f"after step {step} of {told['steps']}" if step else f"({doing})"
    kept = f"checkpoint {saved} is saved in {folder}" if saved else "nothing is saved"
    resume = [*again, "--resume"] if arguments[0] == "train" else ["train", str(folder / "config.toml"), "--resume"]
    if told["over"]:
        lacking = "plots may be missing" if (folder / "summary.json").exists() else "the summary is missing"
        write = f"; write it: {_line(resume)}" if told["resumable"] and lacking.startswith("the") else ""
        return f"stopped by {cause} after the last step: all work is saved in {folder}, but {lacking}{write}"
    if saved and told["resumable"]:
        return f"stopped by {cause} {where}: {kept}; go on: {_line(resume)}"
    replaced = arguments[0] in OVERWRITE and (saved != "" or step is not None)
    return f"stopped by {cause} {where}: {kept}; start anew: {_line([*again, *['--overwrite'][:replaced]])}"


def _line(arguments: Sequence[str]) -> str:
    return shlex.join(["rlft", *arguments])


def _last_step(metrics: Path) -> int | None:
    """Of the last whole row; None where there is no row."""
    rows = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
    return json.loads(rows[-1])["step"] if rows else None


def _last_checkpoint(checkpoints: Path) -> str:
    return max((done.parent.name for done in checkpoints.glob(f"step-*/{NEEDS_PROGRESS}")), default="")


def _read(board: int) -> dict[str, Any]:
    text = os.pread(board, BOARD_BYTES, 0).decode().strip()
    return json.loads(text) if text else {}


def _say(line: str) -> None:
    """One line on standard error; a live line that was there is left, and the cursor that it hid comes back."""
    live = "\x1b[?25h\n" if os.isatty(2) else ""
    with contextlib.suppress(OSError):  # nobody reads any more
        os.write(2, f"{live}{line}\n".encode())


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
