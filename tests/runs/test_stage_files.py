"""Stages follow one another, stop by their rule, resume in the right one, and are checked before anything starts."""

import asyncio
import io
import json
import resource
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from rlft.algorithms.base import Algorithm
from rlft.algorithms.grpo import grpo
from rlft.algorithms.reflect import reflect_retry_reward
from rlft.config import StageConfig, UntilConfig, validate
from rlft.data.ledger import Ledger, Record
from rlft.envs.attempts import Attempts
from rlft.envs.reflect import ReflectRetry
from rlft.envs.single_turn import SingleTurn
from rlft.errors import ConfigError, DataError, SaveError
from rlft.report.folder import RunFolder
from rlft.report.tracking import Tracker
from rlft.rewards.compose import compose, pack
from rlft.runs import checkpoints, stages
from rlft.runs.checkpoints import Saved
from rlft.runs.parts import Parts
from rlft.runs.stages import Stage, Until, check_ids, moving_temperature, run_stages
from rlft.runs.start import check_needs
from rlft.testing.fakes import CharRenderer, FakeLearner, FakeRollouts, TinyLM
from rlft.types import Task, TrajectoryInfo, TurnInfo

TASKS = [Task(c, ({"role": "user", "content": c},), c) for c in "uvwxyz"]
TWO = [{"steps": 3}, {"steps": 2, "name": "second", "learner": {"lr": 1e-3}}]


def run_file(*sections, **keys):
    return validate({"model": "m", "tasks_per_step": 2, "stages": list(sections), **keys})


def test_a_stage_is_the_run_file_with_what_it_sets():
    config = run_file(
        {"steps": 3},
        {"steps": 5, "algorithm": {"name": "reinforce"}, "rollout": {"max_tokens": 9}, "data": {"limit": 7}}
        | {"eval": {"data": {"limit": 2}}},
        algorithm={"name": "grpo", "clip_high": 0.3},
        data={"source": "tasks.jsonl", "limit": 20},
        eval={"data": {"source": "held.jsonl"}, "samples": 2},
    )
    first, second = config.of_stage(0), config.of_stage(1)
    assert (config.steps, first.steps, second.steps) == (8, 3, 5)
    assert first.algorithm == {"name": "grpo", "clip_high": 0.3} and second.algorithm == {"name": "reinforce"}
    assert (second.rollout.max_tokens, second.rollout.group_size) == (9, first.rollout.group_size)
    assert (second.data.source, second.data.limit, first.data.limit) == ("tasks.jsonl", 7, 20)
    assert (second.eval.data.source, second.eval.data.limit, second.eval.samples) == ("held.jsonl", 2, 2)


@pytest.mark.parametrize(
    ("bad", "keys", "message"),
    [
        ({"steps": 3, "rolout": {}}, {}, r"stages\[1\].rolout: unknown key; did you mean 'rollout'\?"),
        ({"steps": 3, "rollout": {"max_token": 3}}, {}, r"stages\[1\].rollout.max_token: unknown key; did you mean 'max_tokens'\?"),
        ({"steps": 3, "rollout": {"max_tokens": 9999}}, {}, r"stages\[1\].rollout.max_tokens 9999 leaves no room"),
        ({"steps": 3, "learner": {"lr": -1.0}}, {}, r"stages\[1\].learner.lr: input should be greater than 0, got -1.0"),
        ({"name": "x"}, {}, r"stages\[1\].steps: missing; every stage must set it"),
        ({"steps": 3, "first_attempts": 1.5}, {}, r"stages\[1\].first_attempts: .*less than or equal to 1"),
        ({"steps": 3, "first_attempts": 0.5}, {}, r"stages\[1\].first_attempts needs rollout.max_turns of 2 or more"),
        ({"steps": 3, "until": {"metric": "eval/mean"}}, {}, r"stages\[1\].until: expected one of above and below"),
        ({"steps": 3, "until": {"metric": "x", "above": 1.0, "below": 0.0}}, {}, r"stages\[1\].until: expected one of above and below"),
        ({"steps": 3}, {"steps": 6}, "steps: every stage has its own, got 6 for the run; remove it"),
    ],
)
def test_a_wrong_stage_is_told_with_its_place(bad, keys, message):
    with pytest.raises(ConfigError, match=message):
        run_file({"steps": 1}, bad, **keys)
    run_file({"steps": 1}, {"steps": 3})  # the control


def test_a_resolved_run_file_with_stages_reads_back_as_itself(tmp_path):
    import rlft

    config = run_file(*TWO, run_dir="r")
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert rlft.load(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("rule", "values", "over"),
    [
        ({"above": 0.5}, [0.4, 0.5, 0.6], 2),
        ({"below": 0.5}, [0.6, 0.5, 0.4], 2),
        ({"above": 0.5, "for_steps": 2}, [0.6, 0.4, 0.6, None, 0.7], 4),
        ({"above": 0.5, "for_steps": 3}, [0.6, 0.6, 0.4, 0.6, 0.6], None),
    ],
)
def test_a_stopping_rule_is_met_by_records_of_its_metric_in_a_row(rule, values, over):
    until = Until(UntilConfig(metric="x", **rule))
    met = [until.look({} if value is None else {"x": value, "y": 9.0}) for value in values]
    assert met == [i == over for i in range(len(values))]
    assert not Until(None).look({"x": 1.0})


def parts_of(tasks, make_env):
    return Parts(CharRenderer(), make_env, pack(compose({"exact_match": 1.0})), tasks, (), ())


def needing(*needs):
    return Algorithm("mine", lambda b, r: b, lambda x, b: (x, {}), needs=frozenset(needs))


class Rewarding(SingleTurn):
    gives_turn_rewards = True


def test_what_an_algorithm_needs_and_what_it_has_no_use_for_are_told_before_a_run():
    plain, critic = run_file({"steps": 1}).of_stage(0), run_file({"steps": 1}, critic={"lr": 1e-4}).of_stage(0)
    check_needs(plain, grpo(), SingleTurn, TASKS)
    check_needs(critic, needing("values"), SingleTurn, TASKS)
    with pytest.raises(ConfigError, match="critic.lr needs an algorithm with a critic, and 'grpo' has none"):
        check_needs(critic, grpo(), SingleTurn, TASKS)
    with pytest.raises(ConfigError, match="'mine' needs a reward for every turn: set reward_pool.per_turn = true, or name an environment"):
        check_needs(plain, needing("turn_rewards"), SingleTurn, TASKS)
    check_needs(plain, needing("turn_rewards"), Rewarding, TASKS)
    watched = run_file({"steps": 1}, guards={"mismatch": 0.02}).of_stage(0)
    check_needs(watched, grpo(), SingleTurn, TASKS)
    with pytest.raises(DataError, match="learns from answers, and task unanswered has none"):
        check_needs(plain, needing("demonstrations"), SingleTurn, [Task("unanswered", ())])
    check_needs(plain, needing("demonstrations"), SingleTurn, [Task("answered", (), "1")])
    with pytest.raises(ConfigError, match="guards.mismatch needs an algorithm that compares probabilities"):
        check_needs(watched, needing(), SingleTurn, TASKS)
    check_needs(run_file({"steps": 1}, reward_pool={"per_turn": True}).of_stage(0), needing("turn_rewards"), SingleTurn, TASKS)
    dropping = run_file({"steps": 1}, rollout={"drop_no_signal": True}).of_stage(0)
    check_needs(dropping, grpo(), SingleTurn, TASKS)
    with pytest.raises(ConfigError, match="from which 'mine' learns too"):
        check_needs(dropping, needing(), SingleTurn, TASKS)


def test_an_environment_that_cannot_give_what_is_trained_is_told_before_a_run():
    long, short = (run_file({"steps": 1}, rollout={"max_turns": turns}).of_stage(0) for turns in (3, 2))
    check_needs(long, reflect_retry_reward(), ReflectRetry, TASKS)
    with pytest.raises(ConfigError, match="rollout.max_turns 2: an episode of 'ReflectRetry' can need 3 turns"):
        check_needs(short, reflect_retry_reward(), ReflectRetry, TASKS)
    check_needs(short, grpo(), Attempts, TASKS)
    for env in (SingleTurn, Attempts):
        with pytest.raises(ConfigError, match=f"trains only turns tagged 'reflection', and environment '{env.__name__}' has no such turn"):
            check_needs(short, reflect_retry_reward(), env, TASKS)


def test_with_a_metric_the_ledger_judges_the_parts_that_there_are():
    """An environment's turn has no part of that name: the trajectory's is judged. Without a metric the turn's reward is."""
    told = TrajectoryInfo("t", "completed", 0.0, {"exact": 1.0}, 1, 2, 0, (TurnInfo("attempt", 0.0, {"env": 0.0}, 2, False),))
    for metric, right in (("exact", True), ("", False)):
        config = run_file({"steps": 1}, eval={"metric": metric}).of_stage(0)
        assert Stage(0, StageConfig(steps=1), config, grpo(), parts_of(TASKS, Rewarding)).right.judge(told) is right


def test_two_tasks_of_one_id_in_two_stages_are_refused():
    one, other = TASKS[:2], [replace(TASKS[0], messages=({"role": "user", "content": "another"},))]
    config = run_file({"steps": 1}).of_stage(0)
    made = [Stage(i, StageConfig(steps=1), config, grpo(), parts_of(tasks, SingleTurn)) for i, tasks in enumerate((one, one, other))]
    check_ids(made[:2])
    with pytest.raises(ConfigError, match=r"stages\[2\]: its task 'u' is not the one of that id in an earlier stage; .* data.id"):
        check_ids(made)


def test_the_temperature_moves_with_the_entropy_only_where_a_target_is_set():
    assert moving_temperature(validate({"model": "m"}).rollout) is None
    control = moving_temperature(validate({"model": "m", "rollout": {"entropy_target": 0.3, "max_temperature": 1.02}}).rollout)
    assert control.start == 1.0
    assert control.next(1.0, {"policy/entropy": 0.6}, 1) < 1.0 < control.next(1.0, {"policy/entropy": 0.2}, 1) <= 1.02
    assert control.next(0.9, {}, 1) == 0.9


class Saver:
    """Saves weights where it is told to, or dies half-way."""

    def __init__(self, dies=False):
        self.dies = dies

    async def save(self, folder, state):
        folder.mkdir(parents=True)
        if self.dies:
            raise KeyboardInterrupt
        if state:
            (folder / "state").mkdir()


def test_the_newest_complete_checkpoint_is_taken_and_half_of_one_never(tmp_path):
    assert checkpoints.last(tmp_path) is None
    for step in (1, 2):
        saved, ledger = Saved(step, stage=1, controls={"kl_coef": 0.5}), Ledger({"t": Record(1, 1, step)})
        asyncio.run(checkpoints.save(Saver(), tmp_path, saved, ledger, True))
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(checkpoints.save(Saver(dies=True), tmp_path, Saved(3), Ledger(), True))
    (tmp_path / ".step-000004.partial").mkdir()
    assert (tmp_path / "step-000003").exists()
    assert checkpoints.last(tmp_path) == Saved(2, stage=1, controls={"kl_coef": 0.5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    assert [path.parent.name for path in tmp_path.glob("*/state")] == ["step-000002"]


def test_a_checkpoint_of_another_command_is_refused(tmp_path):
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "progress.json").write_text('{"step": 1, "position": 4}')
    with pytest.raises(ConfigError, match="not of `rlft train`"):
        checkpoints.last(tmp_path)


def test_a_folder_is_resumed_with_the_same_run_file_but_for_steps(tmp_path):
    config = run_file(*TWO, run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="holds no rlft run to resume"):
        RunFolder.resume(config.run_dir, config)
    RunFolder.create(config.run_dir, config)
    longer = run_file(TWO[0], {**TWO[1], "steps": 9}, run_dir=config.run_dir)
    assert 'steps = 9' in RunFolder.resume(config.run_dir, longer).config.read_text()
    other = run_file(TWO[0], {**TWO[1], "learner": {"lr": 2e-3}}, run_dir=config.run_dir, seed=1)
    with pytest.raises(ConfigError) as error:
        RunFolder.resume(config.run_dir, other)
    assert str(error.value).splitlines()[1:] == ["  seed: 0 then, 1 now", "  stages[1].learner.lr: 0.001 then, 0.002 now"]
    warm = run_file(*TWO, run_dir=config.run_dir, learner={"warmup_steps": 3})  # ends in "steps", and is not how long the run is
    with pytest.raises(ConfigError, match="learner.warmup_steps: 0 then, 3 now"):
        RunFolder.resume(config.run_dir, warm)


def test_what_was_recorded_after_a_checkpoint_is_dropped(tmp_path):
    folder = RunFolder.create(tmp_path / "run", run_file(*TWO))
    for step in (1, 2, 3):
        folder.append_metrics({"step": step})
    folder.alarms.write_text('{"name": "length", "step": 1}\n{"name": "length", "step": 3}\n')
    folder.cut(2, 2)
    assert [row["step"] for row in folder.rows()] == [1, 2]
    assert folder.alarms.read_text() == '{"name": "length", "step": 1}\n'


@contextmanager
def small_files(limit=64):
    """No file of this process grows beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Counted(FakeRollouts):
    """Fakes that note what they play."""

    played: list[Task]

    def __init__(self, *args):
        super().__init__(*args)
        self.helpers, self.workers = (), ()

    async def _play(self, task, temperature, samples=0):
        self.note(task, samples)
        return await super()._play(task, temperature, samples)


class Toy:
    """A run of stages whose actors are fakes in this process; `fails_at` is a step that the learner does not survive,
    `full_at` one whose checkpoint is larger than a file may be."""

    def __init__(self, tmp_path, monkeypatch, config, fails_at=None, full_at=None):
        self.config, self.fails_at, self.full_at = config, fails_at, full_at
        self.drawn, self.evaluated, self.crews = [], 0, []
        grader = pack(compose({"exact_match": 1.0}))
        own = [config.of_stage(i) for i in range(len(config.stages))]
        parts = Parts(CharRenderer(), SingleTurn, grader, TASKS, TASKS[:2], ())
        self.stages = [Stage(i, options, own[i], grpo(), parts) for i, options in enumerate(config.stages)]
        monkeypatch.setattr(stages, "start_crew", self.start)
        self.resume = RunFolder(tmp_path / "run").config.exists()
        self.folder = RunFolder.resume(tmp_path / "run", config) if self.resume else RunFolder.create(tmp_path / "run", config)

    def start(self, config, stage, saved, folder):
        toy = self

        class Learner(FakeLearner):
            step = saved.step

            async def update(self, groups, algorithm, setting):
                self.step += 1
                if self.step == toy.fails_at:
                    raise RuntimeError("killed")
                return await super().update(groups, algorithm, setting)

            async def save(self, target, state=False):
                with small_files() if self.step == toy.full_at else nullcontext():
                    await super().save(target, state)

        async def grade(groups):
            return [replace(g, trajectories=tuple(replace(t, reward=float(t.index % 2)) for t in g.trajectories)) for g in groups]

        model = TinyLM()
        rollouts = Counted(model, SingleTurn, grade, config.tasks_per_step, 2)
        rollouts.note = self.note
        self.crews.append((stage.index, saved.step, saved.weights))

        async def dismiss():
            self.crews.append("dismissed")

        return SimpleNamespace(rollouts=rollouts, learner=Learner(model, 1.0), dismiss=dismiss, abandon=dismiss)

    def note(self, task, samples):
        if samples:
            self.evaluated += 1
        else:
            self.drawn.append(task)

    def run(self):
        saved = Saved()
        if self.resume:
            saved = checkpoints.last(self.folder.checkpoints) or Saved()
            self.folder.cut(saved.rows, saved.step)
        with Tracker(self.folder, self.config, Console(file=io.StringIO())) as tracker:
            return asyncio.run(run_stages(self.config, self.stages, self.folder, tracker, saved))


def tracks(toy):
    return [(row["step"], row["stage"], "eval/mean" in row) for row in toy.folder.rows()]


def test_a_stage_begins_with_fresh_actors_from_the_weights_before_and_counts_on(tmp_path, monkeypatch):
    toy = Toy(tmp_path, monkeypatch, run_file(*TWO))
    summary = toy.run()
    assert toy.crews == [(0, 0, ""), "dismissed", (1, 3, "step-000003"), "dismissed"]
    assert [(step, stage) for step, stage, evaluated in tracks(toy) if not evaluated] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
    assert [(step, stage) for step, stage, evaluated in tracks(toy) if evaluated] == [(0, 0), (3, 0), (5, 1)]
    assert sorted(path.name for path in toy.folder.checkpoints.iterdir()) == ["step-000003", "step-000005"]
    assert summary["steps"] == 5 and {"eval_start", "eval_end"} <= set(summary)
    ledger = json.loads(toy.folder.ledger.read_text())
    assert sum(record["attempts"] for record in ledger.values()) == 5 * 2 * 2
    assert {record["passes"] / record["attempts"] for record in ledger.values()} == {0.5}


def test_a_stage_that_measures_otherwise_is_measured_at_its_beginning_too(tmp_path, monkeypatch):
    toy = Toy(tmp_path, monkeypatch, run_file(TWO[0], {**TWO[1], "rollout": {"max_turns": 2}}))
    toy.run()
    assert [(step, stage) for step, stage, evaluated in tracks(toy) if evaluated] == [(0, 0), (3, 0), (3, 1), (5, 1)]


def test_a_stage_ends_early_by_its_rule_and_the_next_one_begins_there(tmp_path, monkeypatch):
    until = {"metric": "reward/mean", "above": 0.1, "for_steps": 2}
    toy = Toy(tmp_path, monkeypatch, run_file({"steps": 50, "until": until}, {"steps": 1}))
    toy.run()
    assert toy.crews[2] == (1, 2, "step-000002") and toy.folder.rows()[-1]["step"] == 3


def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it_to_go_on_from(tmp_path, monkeypatch):
    config = run_file(*TWO, tracking={"save_every": 1})
    toy = Toy(tmp_path, monkeypatch, config, full_at=4)
    with pytest.raises(SaveError, match=r"step-000004 could not be written: .*File too large.*last complete .* step-000003, from"):
        toy.run()
    saves = toy.folder.checkpoints
    assert sorted(path.name for path in saves.iterdir()) == ["step-000001", "step-000002", "step-000003"]
    assert (saves / "step-000003" / "state").is_dir()  # the newest one's optimizer is there still
    again = Toy(tmp_path, monkeypatch, config)
    assert again.run()["steps"] == 5 and again.crews[0] == (1, 3, "step-000003")


def test_a_first_checkpoint_that_cannot_be_written_says_that_there_is_none(tmp_path):
    with pytest.raises(SaveError, match="step-000001 could not be written: ValueError; there is none before it"), checkpoints.writing(
        tmp_path / "step-000001"
    ):
        raise ValueError
    with checkpoints.writing(tmp_path / "step-000001"):  # the control
        pass


@pytest.mark.parametrize(("dies", "goes_on", "before"), [(2, (0, 1, ""), 1), (4, (1, 3, "step-000003"), 3), (5, (1, 4, "step-000003"), 4)])
def test_a_run_that_died_goes_on_in_its_stage_with_the_tasks_that_were_next(tmp_path, monkeypatch, dies, goes_on, before):
    config = run_file(*TWO, tracking={"save_every": 1})
    whole = Toy(tmp_path / "whole", monkeypatch, config)
    whole.run()
    died = Toy(tmp_path, monkeypatch, config, fails_at=dies)
    with pytest.raises(RuntimeError, match="killed"):
        died.run()
    resumed = Toy(tmp_path, monkeypatch, config)
    resumed.run()
    assert resumed.crews[0] == goes_on and died.crews[-1] == "dismissed"
    assert [task.id for task in resumed.drawn] == [task.id for task in whole.drawn][2 * before :]
    assert tracks(resumed) == tracks(whole)
    assert resumed.folder.ledger.read_text() == whole.folder.ledger.read_text()


def test_a_run_that_died_before_its_first_checkpoint_begins_anew_in_its_folder(tmp_path, monkeypatch):
    died = Toy(tmp_path, monkeypatch, run_file(*TWO), fails_at=2)
    with pytest.raises(RuntimeError):
        died.run()
    resumed = Toy(tmp_path, monkeypatch, run_file(*TWO))
    resumed.run()
    assert resumed.crews[0] == (0, 0, "")
    assert [step for step, _, evaluated in tracks(resumed) if not evaluated] == [1, 2, 3, 4, 5]


def test_a_share_of_a_stages_tasks_begins_with_what_the_first_model_said(tmp_path, monkeypatch):
    config = run_file({"steps": 2}, {"steps": 20, "first_attempts": 0.5}, rollout={"max_turns": 2})
    toy = Toy(tmp_path, monkeypatch, config)
    toy.run()
    said = stages.read_first_attempts(toy.folder.first_attempts)
    assert set(said) == {task.id for task in TASKS} and all(len(text) == 1 for text in said.values())
    assert not any(task.first_attempt for task in toy.drawn[:4])
    begun = [task for task in toy.drawn[4:] if task.first_attempt]
    assert 10 < len(begun) < 30 and all(task.first_attempt == said[task.id] for task in begun)
    again = toy.folder.first_attempts.read_text()
    longer = run_file({"steps": 2}, {"steps": 22, "first_attempts": 0.5}, rollout={"max_turns": 2})
    Toy(tmp_path, monkeypatch, longer).run()
    assert toy.folder.first_attempts.read_text() == again  # asked once
