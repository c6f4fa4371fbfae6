"""The guard of a command: what a signal ends, what it leaves time for, and what it says."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from rlft.runs.stopping import last_words

LIMIT_S = 5.0  # promised
WAIT_S = 60.0

GUARDED = """
import os, re, signal, subprocess, sys, time
from rlft.runs import stopping
{before}
stopping.guard(sys.argv[1:])
{command}
"""
READY = "print(os.getpid(), flush=True)\n"
HANGS = READY + "re.match('(a+)+$', 'a' * 60 + 'b')"  # C code that holds the interpreter and looks at no signal
STUBBORN = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(1000)"
# A process in a session of its own that ends by itself when its parent does, and takes a moment to clean up.
CLEANS_UP = "import sys, pathlib; print('up', flush=True); sys.stdin.read(); pathlib.Path(sys.argv[1]).touch()"
HAS_HELPER = (
    "child = subprocess.Popen([sys.executable, '-c', {helper!r}, {file!r}], stdin=-1, stdout=-1, text=True, start_new_session=True)\n"
    "child.stdout.readline()\nprint(os.getpid(), child.pid, flush=True)\ntime.sleep(1000)"
)
IGNORES_ALL = "import time; print('up', flush=True); time.sleep(1000)"


@pytest.fixture
def guarded():
    """Starts a command under a guard and gives it with what it first says; nothing of it outlives the test."""
    begun = []

    def start(command, before="", arguments=("train", "run.toml"), preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)):
        code = GUARDED.format(before=before, command=command)
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=preexec
        )
        begun.append(process)
        return process, [int(pid) for pid in process.stdout.readline().split()]

    yield start
    for process in begun:
        for each in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            each.kill()
        process.kill()
        process.communicate(timeout=WAIT_S)


def ended(process, limit_s=WAIT_S):
    said = process.communicate(timeout=limit_s)[1]
    return process.returncode, said


@pytest.mark.parametrize(("number", "status", "cause"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
@pytest.mark.parametrize("command", [HANGS, STUBBORN], ids=["in C code", "ignores signals"])
def test_a_signal_ends_what_the_command_is_busy_with_and_says_so_in_one_line(guarded, command, number, status, cause):
    process, (pid,) = guarded(command)
    process.send_signal(number)
    assert ended(process, LIMIT_S) == (
        status,
        f"stopped by {cause} (starting): nothing is saved; start anew: rlft train run.toml\n",
    )
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(("command", "status"), [("", 0), ("sys.exit(3)", 3), ("sys.exit('why')", 1)])
def test_a_command_that_ends_by_itself_keeps_its_exit_status(guarded, command, status):
    process, _ = guarded(command)
    assert ended(process) == (status, "why\n" if "why" in command else "")


def test_a_command_that_is_killed_from_elsewhere_is_told():
    code = GUARDED.format(before="", command="os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 137 and done.stderr.startswith("rlft: its process was ended by SIGKILL") and done.stderr.count("\n") == 1


def test_a_guard_that_is_killed_takes_its_command_along(guarded):
    process, (pid,) = guarded(STUBBORN)
    command = psutil.Process(pid)
    process.kill()
    command.wait(WAIT_S)


def test_what_leads_a_session_of_its_own_may_clean_up(guarded, tmp_path):
    process, pids = guarded(HAS_HELPER.format(helper=CLEANS_UP, file=str(tmp_path / "clean")))
    process.send_signal(signal.SIGTERM)
    assert ended(process, LIMIT_S)[0] == 143
    assert (tmp_path / "clean").exists() and not any(map(psutil.pid_exists, pids))


def test_what_does_not_end_by_itself_is_killed(guarded, tmp_path):
    process, pids = guarded(HAS_HELPER.format(helper=IGNORES_ALL, file=""))
    process.send_signal(signal.SIGTERM)
    assert ended(process, LIMIT_S)[0] == 143
    assert not any(map(psutil.pid_exists, pids))


def test_a_second_ctrl_c_waits_for_nothing(guarded):
    process, pids = guarded(HAS_HELPER.format(helper=IGNORES_ALL, file=""), before="stopping.CLEAN_S = 1000.0")
    process.send_signal(signal.SIGINT)
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)][:1], WAIT_S)  # the command: the first has worked
    assert process.poll() is None and psutil.pid_exists(pids[1])
    process.send_signal(signal.SIGINT)
    assert ended(process, LIMIT_S)[0] == 130
    assert not any(map(psutil.pid_exists, pids))


def test_a_signal_that_the_shell_has_turned_off_stays_off(guarded):
    process, _ = guarded(STUBBORN, preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert ended(process, LIMIT_S)[0] == 143


def test_a_command_that_has_saved_everything_ends_in_peace_with_status_0(guarded):
    finishing = (
        "stopping.note(folder='runs/x', steps=3, resumable=True, over=True)\n"
        + READY
        + "signal.sigwait({signal.SIGUSR1}); print('plots', flush=True)"
    )
    process, (pid,) = guarded(finishing, before="signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})")
    process.send_signal(signal.SIGINT)
    psutil.Process(pid).send_signal(signal.SIGUSR1)
    out, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out, said) == (0, "plots\n", "")


def test_one_that_does_not_end_its_words_in_time_is_ended_and_its_status_is_0_too(guarded, folder):
    process, _ = guarded(f"stopping.note(folder={str(folder(3, complete=(3,)))!r}, steps=3, resumable=True, over=True)\n" + STUBBORN)
    process.send_signal(signal.SIGTERM)
    status, words = ended(process, LIMIT_S)
    assert status == 0 and words.startswith("stopped by SIGTERM after the last step: all work is saved in ")


def test_before_everything_is_saved_the_status_is_not_0(guarded):
    process, _ = guarded("stopping.note(folder='runs/x', steps=3, resumable=True, over=False, doing='starting actors')\n" + STUBBORN)
    process.send_signal(signal.SIGTERM)
    assert ended(process, LIMIT_S) == (
        143,
        "stopped by SIGTERM (starting actors): nothing is saved; start anew: rlft train run.toml\n",
    )


@pytest.fixture
def folder(tmp_path):
    """Makes a run folder with rows up to a step (None: no row) and checkpoints; incomplete ones lack their progress."""

    def make(step=None, complete=(), incomplete=()):
        if step is not None:
            rows = [json.dumps({"step": n}) + "\n" for n in range(step + 1)]
            (tmp_path / "metrics.jsonl").write_text("".join(rows) + '{"step": 99')
        for n in (*complete, *incomplete):
            (tmp_path / "checkpoints" / f"step-{n:06d}").mkdir(parents=True)
        for n in complete:
            (tmp_path / "checkpoints" / f"step-{n:06d}" / "progress.json").touch()
        return tmp_path

    return make


def said(folder, *arguments, resumable=True, over=False):
    told = {"folder": str(folder), "steps": 40, "resumable": resumable, "over": over, "doing": "starting actors"}
    return last_words("Ctrl-C", told, arguments).replace(str(folder), "F").removeprefix("stopped by Ctrl-C ")


def test_a_run_goes_on_from_the_last_complete_checkpoint(folder):
    made = folder(7, complete=(3, 5), incomplete=(6,))
    words = "after step 7 of 40: checkpoint step-000005 is saved in F; "
    assert said(made, "train", "a b.toml", "--overwrite") == words + "go on: rlft train 'a b.toml' --resume"
    assert said(made, "train", "run.toml", "--resume") == words + "go on: rlft train run.toml --resume"
    assert said(made, "demo", "--seed", "3") == words + "go on: rlft train F/config.toml --resume"
    anew = words + "start anew: rlft sft run.toml --overwrite"
    assert said(made, "sft", "run.toml", resumable=False) == anew


def test_a_run_without_one_starts_anew_and_replaces_what_it_began(folder):
    made = folder(7, incomplete=(6,))
    words = "after step 7 of 40: nothing is saved; start anew: "
    assert said(made, "train", "run.toml") == words + "rlft train run.toml --overwrite"
    assert said(made, "demo") == words + "rlft demo"


def test_after_the_last_step_it_is_told_what_may_be_missing(folder):
    made = folder(40, complete=(40,))
    words = "after the last step: all work is saved in F, but "
    assert said(made, "train", "run.toml", over=True) == words + "the summary is missing; write it: rlft train run.toml --resume"
    assert said(made, "sft", "run.toml", resumable=False, over=True) == words + "the summary is missing"
    (made / "summary.json").touch()
    assert said(made, "train", "run.toml", over=True) == words + "plots may be missing"


def test_a_run_that_had_not_begun_starts_as_it_was_started(folder):
    assert said(folder(), "train", "run.toml") == "(starting actors): nothing is saved; start anew: rlft train run.toml"
    assert last_words("SIGTERM", {}, ["check", "run.toml"]).endswith("(starting): nothing is saved; start anew: rlft check run.toml")


def test_what_a_command_noted_to_be_said_is_said():
    assert last_words("Ctrl-C", {"say": "the job runs on"}, ["submit"]) == "stopped by Ctrl-C: the job runs on"
