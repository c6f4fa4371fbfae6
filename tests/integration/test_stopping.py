"""Ctrl-C and SIGTERM at every moment of a run: at most five seconds, one line, the right exit status, and nothing left."""

import json
import re
import shlex
import signal

import pytest
from stop_moments import APPEAR_S, COMMITTED, MOMENTS, begin, end, stop, wait_for

import rlft
from rlft.report.folder import RunFolder
from rlft.runs import checkpoints

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

LIMIT_S = 5.0
FEW = [
    ("the command has begun", signal.SIGINT, False),
    ("the engine loads", signal.SIGINT, True),
    ("a checkpoint is complete", signal.SIGTERM, False),
]
ALL = [(moment, number, i % 2 == 0) for number in (signal.SIGINT, signal.SIGTERM) for i, moment in enumerate(MOMENTS)]


def check(folder, moment, number, to_group):
    started = begin(folder)
    try:
        wait_for(started, moment)
    except BaseException:
        end(started)
        raise
    stopped = stop(started, number, to_group)
    assert stopped.seconds <= LIMIT_S and stopped.gone_s <= LIMIT_S, stopped
    assert stopped.left == []
    lines = stopped.said.splitlines()
    if moment in COMMITTED:
        assert stopped.status == 0 and (started.run / "summary.json").exists()
        assert lines == [] or (len(lines) == 1 and "all work is saved in run" in lines[0]), stopped.said
        return
    assert stopped.status == 128 + number
    assert len(lines) == 1 and lines[0].startswith(f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'} "), stopped.said
    complete = sorted(path.parent.name for path in started.run.glob("checkpoints/step-*/progress.json"))
    assert (f"checkpoint {complete[-1]} is saved in run; go on: " if complete else "nothing is saved; start anew: ") in lines[0]
    goes_on_in(folder, lines[0])


def goes_on_in(folder, line):
    """What the line says to type finds the folder as it needs it."""
    command, file, *options = shlex.split(re.search(r"(?:go on|start anew): rlft (.*)", line)[1])
    assert (command, file) == ("train", "run.toml")
    config = rlft.load(folder / file, [f"run_dir={folder / 'run'}"])
    if "--resume" in options:
        checkpoints.last(RunFolder.resume(config.run_dir, config).checkpoints)
    else:
        RunFolder.create(config.run_dir, config, "--overwrite" in options)


@pytest.mark.parametrize(("moment", "number", "to_group"), FEW)
def test_a_signal_ends_a_run_in_five_seconds_and_says_how_to_go_on(tmp_path, moment, number, to_group):
    check(tmp_path, moment, number, to_group)


@pytest.mark.nightly
@pytest.mark.parametrize(("moment", "number", "to_group"), ALL)
def test_a_signal_does_so_at_every_moment(tmp_path, moment, number, to_group):
    check(tmp_path, moment, number, to_group)


PAIRS = ["--set", "data.source=pairs.jsonl", "--set", "eval={}", "--set", "reward={}", "--set", "rollout={}"]
OTHERS = {
    "sft": ["--set", "eval={}", "--set", "reward={}", "--set", "rollout={}"],
    "dpo": [*PAIRS, "--set", "algorithm.name=dpo"],
    "train-rm": PAIRS,
    "eval": [],
    "demo": [],
}


@pytest.mark.nightly
@pytest.mark.parametrize("command", OTHERS)
def test_every_command_that_starts_ray_ends_so(tmp_path, command):
    rows = [json.dumps({"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": "?"}) for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    started = begin(tmp_path, *OTHERS[command], command=command)
    try:
        wait_for(started, "Ray starts")
    except BaseException:
        end(started)
        raise
    stopped = stop(started, signal.SIGINT, to_group=True)
    assert stopped.status == 130 and stopped.gone_s <= LIMIT_S and stopped.left == []
    assert stopped.said.count("\n") == 1 and f"nothing is saved; start anew: rlft {command}" in stopped.said


def test_a_check_whose_reward_hangs_ends_with_its_grading_processes(tmp_path):
    slow = ["--set", 'reward={"my_reward:brief" = {takes_s = 1000.0}}', "--set", "reward_pool.timeout_s=1000"]
    started = begin(tmp_path, *slow, command="check")
    try:
        wait_for(started, "the first answers are graded")
    except BaseException:
        end(started)
        raise
    assert any("rlft.rewards.zygote" in name for name in started.names())
    stopped = stop(started, signal.SIGINT, to_group=True)
    assert stopped.status == 130 and stopped.gone_s <= LIMIT_S and stopped.left == []
    assert stopped.said.startswith("stopped by Ctrl-C (check): nothing is saved; start anew: rlft check run.toml ")


def test_an_error_at_the_start_is_told_as_it_is_and_not_as_one_of_shutting_down(tmp_path):
    started = begin(
        tmp_path, "--set", "learner.dtype=bfloat16", "--set", "learner.zero_stage=0"
    )  # told by the learner, while the engine loads
    try:
        status = started.process.wait(APPEAR_S)
        left = started.names()
    finally:
        end(started)
    said = (tmp_path / "err").read_text()
    assert status == 1 and said.startswith("ConfigError: learner.zero_stage 0 sums bfloat16 gradients") and said.count("\n") == 1
    assert left == []
