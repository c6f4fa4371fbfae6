"""`rlft check` finds rewards that pay wrong answers or not the right ones, and says which."""

import asyncio
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rlft.config import validate
from rlft.errors import ConfigError
from rlft.rewards.compose import compose, pack
from rlft.rewards.grader import spoken
from rlft.rewards.http import HttpReward
from rlft.rewards.probes import Probe
from rlft.runs.check import Paid, Plan, check, find, first_look, first_words, tells, usable, verdict
from rlft.types import Task

REWARDS = '''
def exact(task, trajectory):
    return float(trajectory.text == task.answer)


def anywhere(task, trajectory):
    return float(task.answer in trajectory.text)


def everyone(task, trajectory):
    return 1.0


def half_of_some(task, trajectory):
    return exact(task, trajectory) * (0.5 if task.id == "3" else 1.0)


def fails_on_empty(task, trajectory):
    return exact(task, trajectory) if trajectory.text else 1 / 0


def fails_on_gold(task, trajectory):
    return 0.0 if trajectory.text != task.answer else 1 / 0


def hangs(task, trajectory):
    while True:
        pass


def solves(task, trajectory):
    return float(trajectory.text == task.meta["solution"])


def rank(group):
    return [t.parts["exact"] - 0.5 for t in group.trajectories]


def by_group(group):
    return [t.parts["exact"] * int(t.task.id) / 100 for t in group.trajectories]
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"rewards_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(REWARDS)
    rows = [{"prompt": f"{i}+30=", "answer": str(30 + i), "solution": f"s{i}"} for i in range(1, 7)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def ran(reward, width=200, **plan):
    """Whether the check passed, and what it printed."""
    out = io.StringIO()
    config = validate({"model": "m", "data": {"source": "tasks.jsonl"}, "reward": reward})
    sound = asyncio.run(check(config, Plan(console=Console(file=out, width=width), **plan)))
    return sound, out.getvalue()


def test_a_sound_reward_passes_and_the_table_shows_what_it_pays(folder):
    sound, said = ran({f"{folder}:exact": 2.0, f"{folder}:rank": 1.0})
    assert sound and "maximum" not in said and "paid as much" not in said
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in said.splitlines() if len(cells := line.split("│")) > 3}
    assert rows["gold"] == ["6", "0", "2.5", "2.5", ""]
    assert rows["one character changed"] == ["6", "0", "-0.5", "-0.5", "0%"]
    assert rows["exact"] == ["1", "0", "0", "right from wrong"] and rows["rank"] == ["0.5", "-0.5", "-0.5", "right from wrong"]
    assert said.rstrip().endswith("verdict: sound")


def test_what_gold_earns_by_comparison_within_its_group_need_not_be_the_same_for_all_tasks(folder):
    sound, said = ran({f"{folder}:exact": 1.0, f"{folder}:by_group": 0.1})
    assert sound and "maximum" not in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("everyone", "wrong answers that are paid as much as gold"),
        ("anywhere", "every option listed, task 1: "),
        ("half_of_some", "gold, task 3: '33' -> 0.5, {'half_of_some': 0.5}"),
        ("fails_on_gold", "gold, task 1: '31' -> reward 'fails_on_gold' raised ZeroDivisionError"),
    ],
)
def test_an_unsound_reward_fails_and_the_cases_are_listed(folder, name, said):
    sound, printed = ran({f"{folder}:{name}": 1.0})
    assert not sound and said in printed


def test_the_verdict_on_a_reward_that_cannot_grade_names_the_first_cause(folder):
    _, printed = ran({f"{folder}:fails_on_gold": 1.0})
    told = printed.partition("verdict: not sound")[2]
    assert "- 6 gold answers could not be graded; the first: reward 'fails_on_gold' raised ZeroDivisionError: division by zero" in told
    assert "the first" not in ran({f"{folder}:everyone": 1.0})[1]  # the control


def test_the_first_cause_is_one_line_and_does_nothing_to_a_terminal():
    lost = [replace(paid(name, "gold", None), graded=replace(paid(name, "gold", None).graded, error=error))
            for name, error in (("1", ""), ("2", "boom \x1b[2J\nsecond line"))]  # fmt: skip
    (said,) = verdict(find(lost))
    assert said.startswith("2 gold answers could not be graded; the first: boom ") and "\x1b" not in said and "second" not in said


def test_what_cannot_be_graded_is_listed_and_counted(folder):
    sound, said = ran({f"{folder}:fails_on_empty": 1.0})
    assert sound and "wrong answers that cannot be graded: 6" in said and "empty, task 1: '' -> reward 'fails_on_empty' raised" in said


def test_a_reward_that_reads_leniently_fails_when_strict(folder):
    sound, said = ran({"number_match": 1.0})
    assert sound and "answers with the gold in them" in said
    assert not ran({"number_match": 1.0}, strict=True)[0]
    assert ran({"exact_match": 1.0}, strict=True)[0]


def test_the_template_and_the_field_of_the_gold_answer_are_used(folder):
    tags = {"format_tags": {"tags": ["answer"], "gate": 1.0}, "number_match": 1.0}
    assert not ran(tags)[0]  # gold without its tags fails the gate, as everything else does
    assert ran(tags, template="<answer>{answer}</answer>")[0]
    assert not ran({f"{folder}:solves": 1.0})[0]
    assert ran({f"{folder}:solves": 1.0}, gold="solution")[0]
    with pytest.raises(ConfigError, match="no task has the field 'key'; --gold"):
        ran({"exact_match": 1.0}, gold="key")


def test_rewards_normalised_in_their_group_are_compared_within_it(folder):
    assert not ran({f"{folder}:half_of_some": 1.0})[0]
    assert ran({f"{folder}:half_of_some": {"normalize": "group"}})[0]


def test_samples_are_drawn_by_seed(folder):
    first, again, other = (ran({f"{folder}:anywhere": 1.0}, samples=2, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again != other and "│ 2     │" in first and "│ 6     │" not in first


def test_models_and_services_are_left_out_and_named():
    far = {"fn": HttpReward(url="http://localhost:1/grade")}
    kept, skipped = usable(compose({"exact_match": 1.0, "far": far}), scorers=False)
    assert [term.rule.name for term in kept] == ["exact_match"] and skipped == ["far"]
    assert usable(compose({"far": far}), scorers=True)[1] == []
    with pytest.raises(ConfigError, match="--scorers"):
        usable(compose({"far": far}), scorers=False)
    with pytest.raises(ConfigError, match="has no .reward. that can be checked$"):
        usable((), scorers=False)


def paid(task_id, kind, reward, lenient=False):
    trajectory = spoken(Task(task_id, ()), "x")
    graded = replace(trajectory, status="failed") if reward is None else replace(trajectory, reward=reward)
    return Paid(task_id, Probe(kind, "x", lenient), graded)


def test_findings_by_hand():
    one = [paid("1", "gold", 1.0), paid("1", "empty", 0.0), paid("1", "blank", 1.0), paid("1", "echo", 2.0, lenient=True)]
    two = [paid("2", "gold", 0.5), paid("2", "empty", None)]
    three = [paid("3", "gold", None), paid("3", "empty", 1.0)]
    found = find([*one, *two, *three])
    assert found.below == (two[0], three[0]) and found.ungraded == (two[1],)
    assert found.as_gold == (one[2],) and found.lenient == (one[3],)
    assert find([*one, *two, *three], relative=True).below == (three[0],)


def test_the_tables_fit_eighty_columns_however_many_components_there_are(folder):
    names = ("exact", "anywhere", "everyone", "half_of_some", "fails_on_empty", "solves")
    _, said = ran({f"{folder}:{name}": 1.0 for name in names}, width=80)
    tables = [line for line in said.splitlines() if line[:1] in "┏┃┡│└├"]
    assert tables and max(map(len, tables)) <= 80 and not any("…" in line for line in tables)
    assert all(any(line.startswith(f"│ {name} ") for line in tables) for name in names)


def test_the_verdict_names_what_is_wrong_and_components_that_tell_nothing(folder):
    sound, said = ran({f"{folder}:exact": 1.0, f"{folder}:everyone": 0.5})
    assert sound and "nothing: always the same" in said and said.rstrip().endswith("verdict: sound")
    sound, said = ran({f"{folder}:everyone": 1.0})
    assert not sound and "verdict: not sound\n  - " in said and "wrong answers earn as much as gold: " in said


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ([1.0, 1.0], [0.0, 0.5], "right from wrong"),
        ([1.0, 1.0], [0.0, 1.0], "right from most wrong"),
        ([0.5, 0.5], [0.5, 0.5], "nothing: always the same"),
        ([0.0, 0.5], [1.0, 0.0], "something else than right"),
        ([], [0.0], "nothing: it was not graded"),
        ([1.0], [], "no wrong answer was graded"),
    ],
)
def test_what_a_component_tells(right, wrong, said):
    assert tells(right, wrong) == said


def tasks(answers):
    return [Task(str(i), ({"role": "user", "content": f"{i}+30="},), answer) for i, answer in enumerate(answers)]


def looked(reward, answers, timeout_s=10.0):
    return asyncio.run(first_look(pack(compose(reward)), tasks(answers), timeout_s, 0))


def test_a_run_says_at_its_start_what_its_reward_pays_in_one_line(folder):
    said = looked({f"{folder}:exact": 1.0}, ["30", "31", "32"])
    assert said == "reward of 3 right answers as the data has them: 1; of wrong ones at most 0; sound so far (`rlft check` tries all)"
    assert "look with `rlft check`: " in looked({f"{folder}:everyone": 1.0}, ["30", "31"])


def test_nothing_is_said_without_right_answers_or_of_models(folder):
    assert looked({f"{folder}:exact": 1.0}, [None, None]) == ""
    assert looked({"far": {"fn": HttpReward(url="http://localhost:1/grade")}}, ["1"]) == ""


def test_a_gold_answer_that_cannot_be_graded_is_told_and_stops_nothing(folder):
    assert "not graded" in looked({f"{folder}:fails_on_gold": 1.0}, ["30"])


def test_a_reward_that_hangs_on_the_first_answers_is_named_and_nothing_else_is_said(folder, caplog):
    said = looked({f"{folder}:hangs": 1.0}, ["30"], timeout_s=0.5)
    assert said.startswith("right and wrong answers to 1 tasks are not graded yet: reward 'hangs': stopped at its limit of 0.5 s ")
    assert caplog.text == ""


def test_an_unsound_reward_is_told_by_hand():
    cases = [paid("1", "gold", 1.0), paid("1", "empty", 1.0)]
    assert verdict(find(cases)) == ["1 wrong answers earn as much as gold: empty (1)"]
    assert first_words(cases, find(cases)).endswith("look with `rlft check`: 1 wrong answers earn as much as gold: empty (1)")
    lenient = [paid("1", "gold", 1.0), paid("1", "denied", 1.0, lenient=True)]
    assert verdict(find(lenient)) == [] and len(verdict(find(lenient), strict=True)) == 1


def test_the_command_exits_with_what_was_found(folder):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for reward, status in (("exact", 0), ("everyone", 1)):
        Path("run.toml").write_text(f'model = "m"\n[data]\nsource = "tasks.jsonl"\n[reward]\n"{folder}:{reward}" = 1.0\n')
        command = [sys.executable, "-m", "rlft", "check", "run.toml", "--samples", "3"]
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert run.returncode == status, run.stdout + run.stderr
        assert "gold" in run.stdout and "Traceback" not in run.stderr
