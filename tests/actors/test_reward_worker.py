"""The reward worker with real processes: verdicts, failures, deadlines, and a pool that stays whole."""

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import psutil
import pytest

from rlft.actors.reward import LONG_S, Busy, RewardWorker, held_up
from rlft.errors import RewardError, shown_path
from rlft.types import Completion, Group, Task, Trajectory, Turn

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # grading processes need not import this file

PATIENT_S = 60.0  # a limit that no reward here comes near


def trajectory(text, index=0, group_id="g", **changes):
    completion = Completion([7, 8], [-0.5, -0.25], "stop", 0)
    turn = Turn([1], completion, {"role": "assistant", "content": text}, [0, 1, 1], reward=0.25)
    return replace(Trajectory(Task("t", (), "right"), index, (turn,), "completed", group_id), **changes)


def group(*texts, group_id="g"):
    return Group(group_id, tuple(trajectory(text, i, group_id) for i, text in enumerate(texts)))


def run(reward, *groups, processes=1, timeout_s=PATIENT_S, then=None):
    """Grade groups with a fresh worker; `then` is awaited with the worker before it is closed."""

    async def main():
        worker = RewardWorker(reward, processes, timeout_s)
        try:
            return await worker.grade(groups), await then(worker) if then else None
        finally:
            await worker.close()

    return asyncio.run(main())


def grade(reward, *texts, **options):
    """The trajectories of one graded group."""
    (graded,), _ = run(reward, group(*texts), **options)
    return graded.trajectories


def right(task, trajectory):
    return float(trajectory.text == task.answer)


def misbehave(task, trajectory):
    """Does what the policy says."""
    match trajectory.text:
        case "regex":
            return float(bool(re.match(r"(a+)+$", "a" * 40 + "b")))
        case "spin":
            return sum(itertools.repeat(1))
        case "power":
            return 10**10**8 % 7
        case "lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(0)
        case "raise":
            raise ValueError("no such shape")
        case "recursion":
            misbehave(task, trajectory)
        case "print":
            print('["verdicts", 0, 0, [[9.0, ""]]]', flush=True)
    return right(task, trajectory)


# --- verdicts


def test_rewards_are_summed_by_weight_and_every_part_is_kept():
    def words(task, trajectory):
        return len(trajectory.text.split())

    first, second = grade({right: 1.0, words: -0.5, "regex": {"weight": 2.0, "pattern": "^r"}}, "right", "quite wrong")
    assert (first.reward, first.parts) == (1.0 - 0.5 + 2.0, {"right": 1.0, "words": 1.0, "regex": 1.0})
    assert (second.reward, second.parts) == (-1.0, {"right": 0.0, "words": 2.0, "regex": 0.0})


def test_what_the_environment_gave_is_left_alone():
    given = trajectory("right", feedback="from the environment", parts={"solved": 1.0}, reward=5.0)

    def praise(task, trajectory):
        return 1.0, "well done"

    ((graded,), _) = run({praise: 1.0, right: 1.0}, Group("g", (given,)))
    (after,) = graded.trajectories
    assert after.turns == given.turns and after.outcome == 2.0 + 0.25
    assert after.feedback == "from the environment\nwell done"
    assert after.parts == {"solved": 1.0, "praise": 1.0, "right": 1.0}


def test_an_empty_table_leaves_the_environments_reward_only():
    (graded,) = grade({}, "right")
    assert (graded.reward, graded.outcome, graded.status, graded.parts) == (0.0, 0.25, "completed", {})


def test_groups_and_trajectories_keep_their_order():
    groups = [group(*["right", "wrong"] * 4, group_id=f"g{i}") for i in range(7)]
    graded, _ = run(right, *groups, processes=3)
    assert [g.group_id for g in graded] == [g.group_id for g in groups]
    assert [[t.reward for t in g.trajectories] for g in graded] == [[1.0, 0.0] * 4] * 7


def test_trajectories_that_had_failed_are_passed_through():
    had_failed = trajectory("right", 1, status="failed", error="the tool server was gone")
    truncated = trajectory("right", 2, status="truncated")
    ((graded,), stats) = run(
        {right: 1.0, lambda group: [len(group.trajectories)] * 2: 1.0},
        Group("g", (trajectory("right"), had_failed, truncated)),
        then=lambda worker: worker.stats(),
    )
    assert graded.trajectories[1] is had_failed
    assert [t.reward for t in graded.trajectories] == [3.0, 0.0, 3.0]
    assert graded.trajectories[2].status == "truncated"
    assert stats and (stats["graded"], stats["failed"], stats["killed"]) == (2, 0, 0)


def test_a_group_reward_sees_the_group_that_is_left_with_its_parts():
    def rank(group):
        assert all(t.parts.keys() == {"misbehave"} for t in group.trajectories)
        return [(i, f"place {i}") for i, _ in enumerate(group.trajectories)]

    graded = grade({rank: 0.5, misbehave: 1.0}, "right", "raise", "right")
    assert [t.status for t in graded] == ["completed", "failed", "completed"]
    assert [t.reward for t in graded] == [1.0, 0.0, 1.5]
    assert [t.feedback for t in graded] == ["place 0", "", "place 1"]
    assert graded[2].parts == {"misbehave": 1.0, "rank": 1.0}


def test_objects_are_rewards():
    class Scaled:
        def __init__(self, scale):
            self.scale = scale

        def __call__(self, task, trajectory):
            return self.scale * right(task, trajectory)

    assert [t.reward for t in grade(Scaled(3), "right", "wrong")] == [3.0, 0.0]


def test_async_rewards_of_a_request_run_at_the_same_time():
    meeting = asyncio.Barrier(5)  # nobody passes it alone

    async def meet(task, trajectory):
        await meeting.wait()
        return 1.0

    assert [t.reward for t in grade(meet, *"abcde")] == [1.0] * 5


def test_async_group_rewards_and_plain_awaitables_are_awaited():
    async def constant(group):
        await asyncio.sleep(0)
        return [2.0] * len(group.trajectories)

    def later(task, trajectory):
        return asyncio.get_event_loop().create_task(asyncio.sleep(0, 1.0))

    assert [t.reward for t in grade({constant: 1.0, later: 1.0}, "a", "b")] == [3.0, 3.0]


def test_items_of_one_group_are_spread_over_the_processes():
    def pid(task, trajectory):
        return os.getpid()

    assert len({t.reward for t in grade(pid, *"abcd", processes=4)}) == 4
    assert len({t.reward for t in grade(pid, *"abcd", processes=1)}) == 1


# --- failures


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "reward 'bad' returned None; expected a finite number"),
        (float("nan"), "reward 'bad' returned nan; expected a finite number"),
        (float("inf"), "reward 'bad' returned inf; expected a finite number"),
        ("1.0", "reward 'bad' returned '1.0'; expected a finite number"),
        ([1.0], "reward 'bad' returned [1.0]; expected a finite number"),
    ],
)
def test_what_is_not_a_number_fails_the_trajectory(returned, message):
    def bad(task, trajectory):
        return returned if trajectory.text == "bad" else 1.0

    first, second = grade(bad, "bad", "good")
    assert (first.status, first.error, first.reward) == ("failed", message, 0.0)
    assert (second.status, second.error, second.reward) == ("completed", "", 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise", "reward 'misbehave' raised ValueError: no such shape"),
        ("sys.exit", "reward 'misbehave' raised SystemExit: 0"),
        ("recursion", "reward 'misbehave' raised RecursionError: "),
        ("segfault", "reward 'misbehave': grading process died (signal 11)"),
        ("exit", "reward 'misbehave': grading process died (exit status 3)"),
    ],
)
def test_a_reward_that_fails_or_dies_fails_its_trajectory_only(text, message):
    graded = grade(misbehave, "right", text, "right", "wrong", text, "right")
    assert [t.status for t in graded] == ["completed", "failed", "completed", "completed", "failed", "completed"]
    assert [t.reward for t in graded] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert all(t.error.startswith(message) for t in graded if t.status == "failed")


def test_an_exception_is_told_with_its_file_and_line_and_the_task_and_answer_on_which_it_arose():
    def rank(group):
        return [1 / 0 for _ in group.trajectories]

    place = rf"\({re.escape(shown_path(__file__))}, line \d+\)"
    (one,) = grade(misbehave, "raise")
    assert re.fullmatch(rf"reward 'misbehave' raised ValueError: no such shape {place}; on task 't', answer 'raise'", one.error)
    ((graded,), _) = run({rank: 1.0}, group("a", "b"))
    said = rf"reward 'rank' raised ZeroDivisionError: division by zero {place}; on the group of task 't'"
    assert all(re.fullmatch(said, t.error) for t in graded.trajectories)


def test_a_task_that_cannot_be_graded_says_why():
    nothing = replace(trajectory("x"), task=Task("t9", (), None))
    ((graded,), _) = run({"exact_match": 1.0}, Group("g", (nothing,)))
    assert graded.trajectories[0].error.startswith("reward 'exact_match': task 't9' has no answer")


def test_a_group_reward_that_fails_fails_its_group_only():
    def rank(group):
        return [1.0] * (3 if group.group_id == "bad" else 2)

    (bad, good), _ = run({rank: 1.0, right: 1.0}, group("right", "right", group_id="bad"), group("right", "right", group_id="good"))
    assert {(t.status, t.reward) for t in bad.trajectories} == {("failed", 0.0)}
    assert {t.error for t in bad.trajectories} == {"reward 'rank' returned 3 values; expected 2, one per trajectory of the group"}
    assert [t.reward for t in good.trajectories] == [2.0, 2.0]


def test_an_async_reward_that_raises_fails_its_trajectory_only():
    async def judge(task, trajectory):
        await asyncio.sleep(0)
        return misbehave(task, trajectory)

    graded = grade(judge, "right", "raise", "sys.exit", "segfault", "right")
    assert [t.reward for t in graded] == [1.0, 0.0, 0.0, 0.0, 1.0]
    place = rf"\({re.escape(shown_path(__file__))}, line \d+\); on task 't', answer"
    said = (
        "",
        rf"reward 'judge' raised ValueError: no such shape {place} 'raise'",
        rf"reward 'judge' raised SystemExit: 0 {place} 'sys.exit'",
        r"reward 'judge': grading process died \(signal 11\)",
        "",
    )
    assert all(re.fullmatch(text, t.error) for text, t in zip(said, graded, strict=True)), [t.error for t in graded]


def test_a_task_that_the_processes_cannot_unpickle_fails():
    class Unloadable:
        def __reduce__(self):
            return int, ("not a number",)

    odd = replace(trajectory("x"), task=Task("t", (), Unloadable()))
    (first, second), _ = run(right, Group("a", (odd,)), group("right"))
    assert "cannot unpickle this task: ValueError" in first.trajectories[0].error
    assert second.trajectories[0].reward == 1.0


def test_printing_in_a_reward_does_not_disturb_its_verdict(capfd):
    assert [t.reward for t in grade(misbehave, "print", "right")] == [0.0, 1.0]
    printed = capfd.readouterr()
    assert "verdicts" in printed.err and not printed.out


def test_a_reward_that_cannot_be_loaded_stops_the_run_with_the_reason():
    class Unloadable:
        def __reduce__(self):
            return int, ("not a number",)

        def __call__(self, task, trajectory):
            return 1.0

    with pytest.raises(RewardError, match="cannot be loaded in a grading process: ValueError: invalid literal"):
        grade(Unloadable(), "x")


# --- deadlines


@pytest.mark.parametrize("hang", ["regex", "spin", "power"])
def test_a_hung_reward_delays_its_batch_by_at_most_its_limit_and_a_second(hang):
    limit_s = 1.0
    texts = ["right", hang, "wrong", "right", "right"]

    async def main():
        worker = RewardWorker(misbehave, 1, limit_s)
        await worker.start()
        started = time.monotonic()
        (without,) = await worker.grade([group(*texts[:1], *texts[2:])])
        healthy_s = time.monotonic() - started
        started = time.monotonic()
        (hung,) = await worker.grade([group(*texts)])
        hung_s = time.monotonic() - started
        stats = await worker.stats()
        await worker.close()
        return without.trajectories, hung.trajectories, hung_s - healthy_s, stats

    without, hung, delay_s, stats = asyncio.run(main())
    assert delay_s <= limit_s + 1.0
    failed = hung[1]
    assert (failed.status, failed.reward) == ("failed", 0.0)
    assert failed.error == "reward 'misbehave' did not return within its limit of 1 s and was killed"
    others = [(t.status, t.reward, t.parts) for i, t in enumerate(hung) if i != 1]
    assert others == [(t.status, t.reward, t.parts) for t in without]
    assert (stats["graded"], stats["failed"], stats["killed"]) == (8, 1, 1)


def test_the_limit_is_of_one_call_and_not_of_its_batch():
    def nap(task, trajectory):
        time.sleep(0.2)
        return 1.0

    assert [t.reward for t in grade(nap, *"abcdef", timeout_s=1.0)] == [1.0] * 6
    assert [t.status for t in grade(nap, "a", timeout_s=0.1)] == ["failed"]


def test_a_hung_group_reward_fails_its_group_only():
    def rank(group):
        return [sum(itertools.repeat(1)) if group.group_id == "bad" else 1.0 for _ in group.trajectories]

    (bad, good), _ = run({rank: 1.0, right: 1.0}, group("right", "x", group_id="bad"), group("right", group_id="good"), timeout_s=0.5)
    assert {t.error for t in bad.trajectories} == {"reward 'rank' did not return within its limit of 0.5 s and was killed"}
    assert [t.reward for t in good.trajectories] == [2.0]


def test_an_awaitable_that_never_ends_and_one_that_blocks_fail_alone():
    async def judge(task, trajectory):
        await asyncio.sleep(0)
        if trajectory.text == "never":
            await asyncio.Event().wait()
        return misbehave(task, trajectory)

    graded = grade(judge, "right", "never", "wrong", timeout_s=0.5)
    assert [t.status for t in graded] == ["completed", "failed", "completed"]
    assert graded[1].error == "reward 'judge' did not return within its limit of 0.5 s"
    graded = grade(judge, "wrong", "right", "spin", "right", timeout_s=0.5)
    assert [t.status for t in graded] == ["completed", "completed", "failed", "completed"]
    assert [t.reward for t in graded] == [0.0, 1.0, 0.0, 1.0]


def ended(pid):
    """Whether a process dies that was killed; who inherits it may leave it a zombie for a while."""
    deadline = time.monotonic() + PATIENT_S
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def living():
    """The fork server and the grading processes, zombies included."""
    return psutil.Process().children(recursive=True)


@pytest.mark.slow
def test_200_hung_rewards_leave_the_pool_whole():
    def count():
        processes = living()
        assert not [p for p in processes if p.status() == psutil.STATUS_ZOMBIE]
        (server,) = psutil.Process().children()
        return len(processes), len(os.listdir("/proc/self/fd")), server.num_fds()

    async def main():
        worker = RewardWorker(misbehave, 4, 0.05)
        await worker.start()
        before = count()
        groups = [group(*["lock"] * 10, group_id=f"g{i}") for i in range(20)]
        hung = await worker.grade(groups)
        after = count()
        stats = await worker.stats()
        await worker.close()
        return before, hung, after, stats

    before, hung, after, stats = asyncio.run(main())
    assert before == after and before[0] == 4 + 1
    assert {t.status for g in hung for t in g.trajectories} == {"failed"}
    assert (stats["failed"], stats["killed"]) == (200, 200)
    assert not living()


def test_what_a_hung_reward_started_is_killed_with_it(tmp_path):
    def sandbox(task, trajectory):
        program = subprocess.Popen(["sleep", "1000"])
        (tmp_path / "pid").write_text(str(program.pid))
        return program.wait()

    (graded,) = grade(sandbox, "x", timeout_s=0.5)
    assert graded.status == "failed"
    assert ended(int((tmp_path / "pid").read_text()))


# --- sharing and recovery


def test_callers_take_turns_at_the_processes():
    def nap(task, trajectory):
        time.sleep(0.05)
        return 1.0

    async def main():
        worker = RewardWorker(nap, 1, PATIENT_S)
        await worker.start()
        long = asyncio.create_task(worker.grade([group("a", group_id=f"g{i}") for i in range(40)]))
        await asyncio.sleep(0)
        (short,) = await worker.grade([group("b")])
        overtaken = not long.done()
        graded = await long
        await worker.close()
        return short, overtaken, graded

    short, overtaken, graded = asyncio.run(main())
    assert overtaken and short.trajectories[0].reward == 1.0
    assert len(graded) == 40 and all(g.trajectories[0].reward == 1.0 for g in graded)


def test_a_caller_that_gives_up_leaves_the_pool_usable(tmp_path):
    def hang(task, trajectory):
        if trajectory.text == "hang":
            (tmp_path / "begun").touch()
            sum(itertools.repeat(1))
        return 1.0

    async def main():
        worker = RewardWorker(hang, 1, PATIENT_S)
        waiting = asyncio.create_task(worker.grade([group("hang")]))
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (graded,) = await worker.grade([group("x")])
        count = len(living())
        await worker.close()
        return graded, count

    graded, count = asyncio.run(main())
    assert graded.trajectories[0].reward == 1.0 and count == 2


def test_a_lost_fork_server_is_replaced():
    async def main():
        worker = RewardWorker(misbehave, 2, PATIENT_S)
        await worker.start()
        (server,) = psutil.Process().children()
        grading = server.children()
        server.kill()
        assert len(grading) == 2 and not psutil.wait_procs(grading, timeout=PATIENT_S)[1], "they die with their server"
        graded = await worker.grade([group("right", "wrong", "right")])
        count = len(living())
        await worker.close()
        return graded[0], count

    graded, count = asyncio.run(main())
    assert [t.reward for t in graded.trajectories] == [1.0, 0.0, 1.0] and count == 3


def test_no_grading_process_outlives_a_killed_owner(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(
        "import asyncio, psutil, sys, time\n"
        "from rlft.actors.reward import RewardWorker\n"
        "async def main():\n"
        "    worker = RewardWorker({'exact_match': 1.0}, 2, 5.0)\n"
        "    await worker.start()\n"
        "    print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
        "    time.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env) as owner:
        assert owner.stdout
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        owner.kill()
    assert len(pids) == 3
    assert all(map(ended, pids)), "grading processes outlived their owner"


def test_a_reward_that_hangs_is_told_while_others_wait():
    async def main():
        worker = RewardWorker(misbehave, 1, 0.5)
        try:
            idle = await worker.busy()
            waiting = asyncio.create_task(worker.grade([group(*["spin"] * 4)]))
            deadline = time.monotonic() + PATIENT_S
            while not (busy := await worker.busy()).late and not waiting.done() and time.monotonic() < deadline:
                await asyncio.sleep(0)
            await waiting
            return idle, busy, await worker.busy()
        finally:
            await worker.close()

    idle, busy, after = asyncio.run(main())
    assert idle == after == Busy(0) and idle.told() == ""
    assert busy.waiting == 4 and busy.told().startswith("reward 'misbehave': stopped at its limit of 0.5 s 1 times")


def test_a_call_is_told_when_it_takes_long_by_its_limit():
    assert Busy(3, "slow", LONG_S + 1, 10.0).told() == "reward 'slow' in one call for 6 s of at most 10 s, 3 answers wait"
    assert Busy(3, "slow", LONG_S - 1, 2.0).told() == "" and Busy(3, "slow", 20.0, 60.0).told() == ""
    assert "31 s" in held_up([Busy(1, "other", 40.0, 60.0), Busy(9, "slow", 31.0, 60.0), Busy(99)])
