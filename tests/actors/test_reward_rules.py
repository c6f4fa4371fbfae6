"""How a reward's value counts: gates, schedules, normalising, clipping, stand-ins for a missing verdict, scorers, canaries."""

import asyncio
import itertools
import os
import sys
from dataclasses import replace

import cloudpickle
import pytest

from rlft.actors import reward as reward_module
from rlft.actors.reward import RewardWorker
from rlft.errors import ConfigError, RewardError, TaskError
from rlft.loop import check_failures
from rlft.rewards.compose import compose
from rlft.rewards.grader import Canary, Rule, defaults, spoken
from rlft.types import Group, GroupRef, Task, TrajectoryInfo

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # grading processes need not import this file

TASK = Task("t", ({"role": "user", "content": "?"},), "right")
PATIENT_S = 60.0


def group(*texts):
    return Group("g", tuple(replace(spoken(TASK, text), index=i) for i, text in enumerate(texts)))


def grade(reward, *texts, step=0, timeout_s=PATIENT_S, times=1):
    async def main():
        worker = RewardWorker(reward, 1, timeout_s)
        try:
            for _ in range(times):
                (graded,) = await worker.grade([group(*texts)], step)
            return graded.trajectories, await worker.stats()
        finally:
            await worker.close()

    return asyncio.run(main())


def rewards(reward, *texts, **options):
    return [t.reward for t in grade(reward, *texts, **options)[0]]


def right(task, trajectory):
    return float(trajectory.text == task.answer)


def words(task, trajectory):
    return float(len(trajectory.text.split()))


def misbehave(task, trajectory):
    """Does what the policy says; anything else earns 1."""
    match trajectory.text:
        case "raise":
            raise ValueError("no such shape")
        case "exit":
            sys.exit(1)
        case "hang":
            sum(itertools.repeat(1))
        case "die":
            os._exit(3)
        case "none":
            return None
        case "nan":
            return float("nan")
        case "text":
            return "1.0"
        case "list":
            return [1.0, 2.0]
        case "memory":
            return float(len(bytearray(2**31)))
        case "ungradable":
            raise RewardError("too odd to grade")
        case "task":
            raise TaskError("the task has no gold")
    return 1.0


# --- weights, gates, normalising, clipping


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (10, 0.0), (15, 1.0), (20, 2.0), (30, 1.0), (99, 1.0)])
def test_a_weight_moves_in_a_line_between_the_steps_it_names(step, weight):
    assert compose({right: {"weight": [[10, 0.0], [20, 2.0], [30, 1.0]]}})[0].rule.weight_at(step) == weight


def test_a_scheduled_weight_is_that_of_the_graded_step():
    table = {right: {"weight": [[0, 0.0], [10, 1.0]]}}
    assert rewards(table, "right", "wrong", step=5) == [0.5, 0.0]
    assert rewards(table, "right", step=50) == [1.0]


def test_a_shut_gate_leaves_its_own_value_only_and_the_others_unasked(tmp_path):
    def costly(task, trajectory):
        with (tmp_path / "asked").open("a") as asked:
            asked.write(trajectory.text + "\n")
        return 10.0

    def size(group):
        return [len(group.trajectories)] * len(group.trajectories)

    table = {costly: 1.0, words: {"weight": 0.5, "gate": 2.0}, size: 1.0}
    graded, _ = grade(table, "one", "two words", "now three words")
    assert [t.reward for t in graded] == [0.5, 10 + 1.0 + 2, 10 + 1.5 + 2]
    assert [sorted(t.parts) for t in graded] == [["words"], ["costly", "size", "words"], ["costly", "size", "words"]]
    assert (tmp_path / "asked").read_text().split("\n")[:-1] == ["two words", "now three words"]


def test_a_group_reward_that_reads_a_part_is_not_broken_by_what_a_gate_kept_from_it():
    table = {words: {"weight": 0.5, "gate": 2.0}, right: 1.0, "best_in_group": {"part": "right"}}
    graded, stats = grade(table, "right", "two words", "three words here")
    assert [(t.status, t.reward) for t in graded] == [("completed", 0.5), ("completed", 2.0), ("completed", 2.5)]
    assert stats["failed"] == 0


def test_a_value_is_normalised_in_its_group_then_clipped_then_weighted_and_logged_raw():
    table = {words: {"weight": 2.0, "normalize": "group", "clip": [-1.0, 0.5]}}
    graded, _ = grade(table, "a", "a b", "a b c")
    assert [t.reward for t in graded] == [pytest.approx(-2.0), 0.0, 1.0]  # (-1.22, 0, 1.22) clipped
    assert [t.parts["words"] for t in graded] == [1.0, 2.0, 3.0]


def test_equal_values_normalise_to_nothing_and_a_clip_alone_only_bounds():
    assert rewards({words: {"normalize": "group"}}, "a b", "c d") == [0.0, 0.0]
    assert rewards({words: {"clip": [0.0, 2.0]}}, "a", "a b c") == [1.0, 2.0]


def test_one_reward_serves_under_several_names():
    table = {"strict": {"fn": "exact_match", "weight": 1.0}, "lax": {"fn": "exact_match", "weight": 0.5, "case": False}}
    graded, _ = grade(table, "right", "RIGHT")
    assert [t.parts for t in graded] == [{"strict": 1.0, "lax": 1.0}, {"strict": 0.0, "lax": 1.0}]
    assert [t.reward for t in graded] == [1.5, 0.5]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"weight": [[5, 1.0], [5, 2.0]]}, "steps that rise"),
        ({"weight": [[0.5, 1.0]]}, "steps that rise"),
        ({"weight": []}, "steps that rise"),
        ({"weight": [[0, "x"]]}, "expected a finite number"),
        ({"clip": [1.0, 1.0]}, "expected [low, high]"),
        ({"clip": 3.0}, "expected [low, high]"),
        ({"normalize": "batch"}, "expected 'none' or 'group'"),
        ({"timeout_s": 0}, "expected a positive number of seconds"),
        ({"on_error": "fail"}, "expected a finite number"),
        ({"optional": 1}, "expected true or false"),
        ({"memory_mb": 0.5}, "positive whole number"),
        ({"fn": "exact_mach"}, "did you mean 'exact_match'"),
    ],
)
def test_a_wrong_rule_is_a_clear_error(rule, message):
    with pytest.raises(ConfigError) as error:
        compose({"part": {"fn": "exact_match", **rule}})
    assert message in str(error.value) and "reward.part" in str(error.value) or "exact_match" in str(error.value)


def even(number):
    if number % 2:
        raise ConfigError(f"number {number}; expected an even one")


@defaults(check=lambda number: even(number))
def picky_about_options(task, trajectory, *, number):
    return 1.0


def test_a_reward_checks_its_own_options_before_anything_starts():
    with pytest.raises(ConfigError, match="number 3; expected an even one"):
        compose({picky_about_options: {"number": 3}})
    assert compose({picky_about_options: {"number": 4}})


def test_a_gate_on_a_group_reward_is_refused():
    with pytest.raises(ConfigError, match="gate applies to rewards of one trajectory"):
        compose({(lambda group: [0.0] * len(group.trajectories)): {"gate": 0.5}})


# --- errors are not zeros

CAUSES = {
    "raise": "raised", "exit": "raised", "hang": "timeout", "die": "crashed", "none": "invalid", "nan": "invalid",
    "text": "invalid", "list": "invalid", "memory": "oom", "ungradable": "ungradable", "task": "task",
}  # fmt: skip


def test_every_way_to_give_no_verdict_fails_its_trajectory_and_is_counted_by_cause():
    graded, stats = grade({misbehave: {"timeout_s": 0.5, "memory_mb": 512}}, *CAUSES, "fine")
    assert [t.status for t in graded] == ["failed"] * len(CAUSES) + ["completed"]
    assert [t.ungraded for t in graded] == [{"misbehave": cause} for cause in CAUSES.values()] + [{}]
    assert all(t.error.startswith("reward 'misbehave'") for t in graded[:-1])
    assert {key.partition("/")[2]: count for key, count in stats.items() if "/" in key} == {
        "raised": 2, "timeout": 1, "crashed": 1, "invalid": 4, "oom": 1, "ungradable": 1, "task": 1,
    }  # fmt: skip


def test_a_number_stands_in_where_the_rule_says_so_and_is_counted_all_the_same():
    table = {misbehave: {"timeout_s": 0.5, "memory_mb": 512, "on_error": -0.5}, words: 1.0}
    graded, _ = grade(table, *CAUSES, "fine")
    assert [t.status for t in graded] == ["failed" if cause == "task" else "completed" for cause in CAUSES.values()] + ["completed"]
    assert [t.reward for t in graded] == [0.0 if cause == "task" else 0.5 for cause in CAUSES.values()] + [2.0]
    assert [t.ungraded.get("misbehave") for t in graded] == [*CAUSES.values(), None]
    assert all(bool(t.error) == bool(t.ungraded) for t in graded)


def test_a_broken_task_is_never_given_a_number():
    graded, _ = grade({misbehave: {"on_error": 0.0}}, "task")
    assert (graded[0].status, graded[0].error) == ("failed", "reward 'misbehave': the task has no gold")


def test_memory_is_limited_for_one_call_only():
    def allocate(task, trajectory):
        return float(len(bytearray(int(trajectory.text) * 2**20)) > 0)

    graded, _ = grade({allocate: {"memory_mb": 256}}, "64", "1024", "64")
    assert [t.status for t in graded] == ["completed", "failed", "completed"]
    assert [t.status for t in grade(allocate, "1024")[0]] == ["completed"], "without a limit the same call succeeds"


def test_a_stand_in_for_a_group_reward_is_given_to_its_whole_group():
    def short(group):
        return [1.0]

    graded, _ = grade({short: {"on_error": 0.25}}, "a", "b")
    assert [(t.status, t.reward, t.ungraded) for t in graded] == [("completed", 0.25, {"short": "invalid"})] * 2


def test_a_group_reward_may_refuse_one_trajectory_and_grade_the_others():
    def picky(group):
        return [RewardError("too odd to grade") if t.text == "odd" else 1.0 for t in group.trajectories]

    graded, _ = grade(picky, "a", "odd", "b")
    assert [(t.status, t.reward) for t in graded] == [("completed", 1.0), ("failed", 0.0), ("completed", 1.0)]
    assert (graded[1].error, graded[1].ungraded) == ("reward 'picky': too odd to grade", {"picky": "ungradable"})
    assert [t.reward for t in grade({picky: {"on_error": -1.0}}, "a", "odd")[0]] == [1.0, -1.0]


def test_none_from_an_optional_reward_is_no_part_and_no_error():
    def sometimes(task, trajectory):
        return None if trajectory.text == "skip" else 1.0

    graded, _ = grade({sometimes: {"optional": True}, words: 1.0}, "skip", "a b")
    assert [(t.reward, t.parts, t.ungraded) for t in graded] == [
        (1.0, {"words": 1.0}, {}),
        (3.0, {"sometimes": 1.0, "words": 2.0}, {}),
    ]
    assert grade(sometimes, "skip")[0][0].ungraded == {"sometimes": "invalid"}, "without the rule None is an error"


def test_async_rewards_have_their_own_deadlines():
    async def slow(task, trajectory):
        await asyncio.Event().wait()

    async def quick(task, trajectory):
        return 1.0

    table = {slow: {"timeout_s": 0.2, "on_error": 0.0}, quick: {"timeout_s": PATIENT_S}}
    graded, _ = grade(table, "a", "b")
    assert [(t.reward, t.ungraded) for t in graded] == [(1.0, {"slow": "timeout"})] * 2


def test_a_run_stops_when_too_many_verdicts_are_missing_whether_or_not_a_number_stands_in():
    def told(ungraded, error):
        return TrajectoryInfo("t", "completed", 0.0, {}, 1, 1, 1, 0, error, ungraded)

    missing = [told({"x": "timeout"}, f"cause {i}") for i in range(4)]
    graded = [told({}, "") for _ in range(16)]
    with pytest.raises(RewardError) as error:
        check_failures([GroupRef("g", (*missing, *graded), None, 0)], 0.1)
    assert str(error.value).endswith("the first causes:\n  - cause 0\n  - cause 1\n  - cause 2")
    check_failures([GroupRef("g", (*missing, *graded), None, 0)], 0.2)


# --- scorers


class Scorer:
    """Scores by length; fails as the last text of a group says."""

    def __init__(self, *, scale: float = 1.0):
        self.scale, self.living = scale, False

    async def start(self):
        self.living = True

    async def score(self, group):
        assert self.living
        match group.trajectories[-1].text:
            case "hang":
                await asyncio.Event().wait()
            case "raise":
                raise ConnectionError("the service is gone")
            case "short":
                return [1.0]
            case "one":
                return [*([1.0] * (len(group.trajectories) - 1)), RewardError("no verdict on this one")]
        return [(self.scale * len(t.text), "by length") for t in group.trajectories]

    async def close(self):
        self.living = False


def test_a_scorer_grades_beside_functions_and_before_group_rewards():
    def best(group):
        top = max(t.parts["Scorer"] for t in group.trajectories)
        return [float(t.parts["Scorer"] == top) for t in group.trajectories]

    graded, _ = grade({Scorer: {"weight": 0.5, "scale": 2.0}, right: 1.0, best: 1.0}, "right", "a")
    assert [t.reward for t in graded] == [5.0 + 1 + 1, 1.0]
    assert [t.feedback for t in graded] == ["by length"] * 2


@pytest.mark.parametrize(("last", "cause"), [("hang", "timeout"), ("raise", "raised"), ("short", "invalid")])
def test_a_scorer_that_fails_follows_its_rule(last, cause):
    graded, _ = grade({Scorer: {"timeout_s": 0.2, "on_error": -1.0}}, "a", last)
    assert [(t.reward, t.ungraded) for t in graded] == [(-1.0, {"Scorer": cause})] * 2
    graded, _ = grade({Scorer: {"timeout_s": 0.2}}, "a", last)
    assert [t.status for t in graded] == ["failed"] * 2


def test_a_scorer_may_refuse_one_trajectory():
    graded, _ = grade(Scorer, "a", "one")
    assert [(t.reward, t.error) for t in graded] == [(1.0, ""), (0.0, "reward 'Scorer': no verdict on this one")]


def test_an_unknown_option_of_a_scorer_is_named():
    with pytest.raises(ConfigError, match="unknown option 'scal'; did you mean 'scale'"):
        compose({Scorer: {"scal": 2.0}})


# --- canaries


@defaults(on_error=0.0, canaries=[Canary(TASK, "right", 1.0), Canary(TASK, "wrong", 0.0)])
def guarded(task, trajectory):
    broken = os.environ.get("RLFT_BROKEN_SINCE")
    return 0.0 if broken and os.path.exists(broken) else right(task, trajectory)


def test_a_reward_brings_its_own_rule_and_the_run_file_has_the_last_word():
    assert compose(guarded)[0].rule == Rule("guarded", on_error=0.0)
    assert compose({guarded: {"on_error": -1}})[0].rule == Rule("guarded", on_error=-1.0)


def test_a_reward_that_breaks_is_stopped_within_a_thousand_gradings(tmp_path, monkeypatch):
    monkeypatch.setenv("RLFT_BROKEN_SINCE", str(tmp_path / "broken"))
    texts = ["right"] * 100
    assert rewards(guarded, *texts, times=11) == [1.0] * 100

    async def main():
        worker = RewardWorker(guarded, 1, PATIENT_S)
        try:
            await worker.grade([group(*texts)])
            (tmp_path / "broken").touch()
            for graded in range(0, reward_module.CANARIES_EVERY, 100):
                try:
                    await worker.grade([group(*texts)])
                except RewardError as error:
                    return graded + 100, str(error)
        finally:
            await worker.close()

    stopped_after, message = asyncio.run(main()) or (None, "")
    assert stopped_after is not None and stopped_after <= 1000
    assert "reward 'guarded' fails its canary: 'right' against 'right' must be graded 1" in message


def test_a_reward_that_is_broken_from_the_start_grades_nothing(tmp_path, monkeypatch):
    (tmp_path / "broken").touch()
    monkeypatch.setenv("RLFT_BROKEN_SINCE", str(tmp_path / "broken"))
    with pytest.raises(RewardError, match="fails its canary"):
        grade(guarded, "right")


def test_a_hung_answer_leaves_the_rest_of_its_batch_as_it_was():
    graded, stats = grade({misbehave: {"timeout_s": 0.3, "on_error": 0.0}, words: 0.0}, "fine", "hang", "fine")
    assert [t.reward for t in graded] == [1.0, 0.0, 1.0] and stats["killed"] == 1


# --- what is refused before a run, and what a broken scorer or a careless reward leaves behind


class Flat:
    """A scorer that pays 1."""

    async def start(self):
        self.started = True

    async def score(self, group):
        return [1.0] * len(group.trajectories)

    async def close(self):
        self.started = False


class LosesItsConnection(Flat):
    async def score(self, group):
        raise TimeoutError("no connection")


class WaitsForWhatIsCancelled(Flat):
    async def score(self, group):
        raise asyncio.CancelledError("the batch was dropped")


class CannotClose(Flat):
    async def close(self):
        raise RuntimeError("cannot close")


def test_a_scorer_that_raises_as_if_it_were_late_or_cancelled_fails_its_group_and_says_what_it_raised():
    for scorer, why in ((LosesItsConnection(), "TimeoutError: no connection"), (WaitsForWhatIsCancelled(), "CancelledError: the batch")):
        (graded,), _ = grade({scorer: 1.0}, "x")
        assert (graded.status, graded.ungraded) == ("failed", {type(scorer).__name__: "raised"})
        assert why in graded.error


def test_a_caller_that_is_cancelled_while_a_scorer_works_stays_cancelled():
    class Forever(Flat):
        async def score(self, group):
            working.set()
            await asyncio.Event().wait()

    async def main():
        worker = RewardWorker({Forever(): 1.0}, 1, PATIENT_S)
        grading = asyncio.create_task(worker.grade([group("x")]))
        await working.wait()
        grading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await grading
        await worker.close()

    working = asyncio.Event()
    asyncio.run(main())


def test_a_scorer_that_cannot_be_closed_keeps_no_process_alive():
    async def main():
        worker = RewardWorker({CannotClose(): 1.0, right: 1.0}, 1, PATIENT_S)
        await worker.start()
        zygote = worker._processes._zygote
        assert zygote is not None and zygote.poll() is None
        with pytest.raises(RuntimeError, match="cannot close"):
            await worker.close()
        assert zygote.poll() is not None

    asyncio.run(main())


def test_a_process_in_which_a_reward_left_a_task_running_is_not_used_again():
    async def leaves(task, trajectory):
        """Pays 1 where nothing of an earlier call is left on its loop."""
        others = len(asyncio.all_tasks())
        if trajectory.text == "leave":
            asyncio.get_running_loop().create_task(asyncio.Event().wait())
        return float(others)

    async def main():
        worker = RewardWorker({leaves: 1.0}, 1, PATIENT_S)
        try:
            return [(await worker.grade([group(text)]))[0].trajectories[0].reward for text in ("clean", "leave", "clean")]
        finally:
            await worker.close()

    first, _, after = asyncio.run(main())
    assert after == first


async def waits(task, trajectory):
    return 1.0


@defaults(canaries=[Canary(TASK, "right", 1.0)])
def of_group(group):
    return [1.0] * len(group.trajectories)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({Flat(): {"flavour": "mild"}}, r"unknown options \['flavour'\]"),
        ({waits: {"memory_mb": 50}}, "memory_mb does not apply to async rewards"),
        ({of_group: 1.0}, "only a reward of one trajectory can have them"),
        ({"mean": {"fn": "exact_match"}}, "'mean' is taken by the statistic reward/mean"),
    ],
)
def test_what_would_have_no_effect_or_break_a_run_later_is_refused_before(table, message):
    with pytest.raises(ConfigError, match=message):
        compose(table)


def test_a_number_beyond_the_range_of_floats_is_an_invalid_verdict():
    def astronomic(task, trajectory):
        return 10**400

    (graded,), _ = grade(astronomic, "x")
    assert graded.ungraded == {"astronomic": "invalid"}
