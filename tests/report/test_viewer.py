import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rlft.cli import app
from rlft.data.stored import PARTS, as_json, file_name, merge, write_part
from rlft.errors import ConfigError, visible
from rlft.report.viewer import LONGEST, Choice, choose, show, stored_file

NOTHING = {"text": "", "token_ids": [], "sources": [], "turn_ids": [], "loss_mask": [], "logprobs": []}


def record(task="t", outcome=1.0, index=0, row=0, said="42", status="completed", step=1, **changes):
    messages = [{"role": "user", "content": "6*7=", "other": None}, {"role": "assistant", "content": said, "other": None}]
    where = {"run": "r", "model": "m", "kind": "step", "step": step, "worker": 1, "policy_version": 3, "seed": 11}
    told = {"group_id": f"0/{task}", "index": index, "row": row, "task_id": task, "task_meta": "{}", "answer": "42"}
    earned = {"outcome": outcome, "reward": outcome, "components": as_json({"exact": outcome}), "ungraded": [], "feedback": "", "error": ""}
    turns = {"tags": [""], "turn_rewards": [0.0], "turn_components": ["{}"], "finish_reasons": ["stop"], "policy_versions": [3]}
    return {**where, **told, "messages": messages, "status": status, **earned, **turns, **NOTHING, **changes}


def run_folder(tmp_path, kind="step", step=1, records=()):
    (tmp_path / "config.toml").touch()
    name = file_name(kind, step)
    write_part(tmp_path / "rollouts" / PARTS / name / "0.parquet", records)
    merge(tmp_path / "rollouts", name)
    return tmp_path


def shown(folder, **choice):
    console = Console(file=io.StringIO(), width=100)
    show(console, folder, Choice(**choice))
    return console.file.getvalue()


def test_the_worst_and_the_best_are_shown_as_conversations_with_components(tmp_path):
    run_folder(tmp_path, records=[record(f"t{n}", n / 4, said=f"answer {n}") for n in range(5)])
    text = shown(tmp_path, worst=1, best=1)
    assert "answer 0" in text and "answer 4" in text and "answer 2" not in text
    assert "exact 0.25" not in text and "earned     exact 1 " in text and "6*7=" in text
    assert "policy 3" in text and "worker 1" in text and "seed 11" in text and "5 episodes of 5 tasks, mean reward 0.500" in text
    assert text.index("answer 0") < text.index("answer 4")


def test_an_episode_of_several_rows_is_shown_once_and_one_of_a_task_with_all_its_like(tmp_path):
    run_folder(tmp_path, records=[record("a"), record("a", row=1), record("a", index=1, said="43"), record("b")])
    text = shown(tmp_path, task="a")
    assert text.count("6*7=") == 2 and "43" in text and "3 episodes of 2 tasks" in text


def test_a_parquet_file_of_others_is_told_and_nothing_is_shown(tmp_path):
    run_folder(tmp_path, records=[record()])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "rollouts" / "step-000002.parquet")
    with pytest.raises(ConfigError, match="step-000002.parquet holds no episodes of a run: it lacks the column .*--step"):
        shown(tmp_path)
    assert "1 episodes" in shown(tmp_path, step=1)  # the control


def test_the_last_stored_step_is_shown_or_the_one_that_is_asked_for(tmp_path):
    for step in (1, 12):
        run_folder(tmp_path, step=step, records=[record(said=f"at {step}")])
    run_folder(tmp_path, "eval", 30, [record(said="held out")])
    assert "at 12" in shown(tmp_path) and "at 1 " in shown(tmp_path, step=1) and "held out" in shown(tmp_path, kind="eval")
    with pytest.raises(ConfigError, match="step 9 is not stored; stored are 2 from 1 to 12, the nearest is 12"):
        stored_file(tmp_path, "step", 9)
    with pytest.raises(ConfigError, match="no stored episodes of kind 'greedy'; stored are eval, step"):
        stored_file(tmp_path, "greedy", None)


def test_a_folder_that_is_no_run_and_one_that_stored_nothing_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="no run in"):
        stored_file(tmp_path, "step", None)
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match="nothing is \\(tracking.rollouts_every = 0"):
        stored_file(tmp_path, "step", None)


def test_episodes_without_a_verdict_have_no_rank_and_are_told_with_their_cause(tmp_path):
    lost = record("b", 0.0, status="failed", error="timeout [/red]\x1b[2J", ungraded=["exact: timeout"])
    run_folder(tmp_path, records=[record("a", 0.5), lost])
    assert "timeout" not in shown(tmp_path, worst=5) and "1 without a verdict (--failed shows them)" in shown(tmp_path)
    text = shown(tmp_path, failed=True)
    with pytest.raises(ConfigError, match="no worst and no best"):
        shown(tmp_path, failed=True, worst=1)
    assert "no verdict" in text and r"error      timeout [/red]\x1b[2J" in text and "exact: timeout" in text


@pytest.mark.parametrize(
    ("text", "seen"),
    [("\x1b[31mred", r"\x1b[31mred"), ("a\rb", r"a\rb"), ("x\u202ey", r"x\u202ey"), ("\x9b2J", r"\x9b2J"), ("\ud83d", r"\ud83d")],
)
def test_what_a_model_wrote_cannot_control_the_terminal(text, seen, tmp_path):
    assert visible(text) == seen
    assert visible("two\nlines\tand ä 漢 [bold]") == "two\nlines\tand ä 漢 [bold]"  # the control: text stays as it is


def test_control_sequences_and_markup_reach_the_screen_as_text(tmp_path):
    run_folder(tmp_path, records=[record(said="\x1b]0;title\x07[bold]loud[/bold]")])
    text = shown(tmp_path)
    assert "\x1b" not in text and "\x07" not in text and r"\x1b]0;title\x07[bold]loud[/bold]" in text


def test_what_a_model_wrote_cannot_pass_for_another_message(tmp_path):
    run_folder(tmp_path, records=[record(said="no\nuser  I give up " + "user " * 50)])
    lines = [line.removeprefix("│ ") for line in shown(tmp_path).splitlines()]
    assert [line.split()[1] for line in lines if line.startswith("user")] == ["6*7="]


def test_a_long_message_is_cut_and_its_rest_counted(tmp_path):
    run_folder(tmp_path, records=[record(said="x" * (LONGEST + 1234) + "END")])
    assert "1,237 characters more (--full)" in shown(tmp_path) and "END" not in shown(tmp_path)
    assert "END" in shown(tmp_path, full=True)


def test_calls_of_tools_and_rewards_of_turns_are_shown(tmp_path):
    call = as_json({"tool_calls": [{"name": "search", "arguments": {"q": "[x]"}}]})
    messages = [{"role": "assistant", "content": "", "other": call}, {"role": "tool", "content": "found", "other": None}]
    run_folder(tmp_path, records=[record(messages=messages, turn_rewards=[0.5], turn_components=[as_json({"env": 0.5})])])
    text = shown(tmp_path)
    assert '"name": "search"' in text and "turn 1     0.5  env 0.5" in text and "tool       found" in text


def test_an_unknown_task_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'task-1'"):
        choose([{"task_id": "task-1", "status": "completed", "outcome": 1.0}], Choice(task="tsk-1"))


@pytest.mark.parametrize(("options", "said"), [((), "of the step"), (("--eval",), "held out"), (("--greedy",), "most likely")])
def test_the_command_shows_steps_evaluations_and_greedy_answers(tmp_path, options, said):
    for kind, text in (("step", "of the step"), ("eval", "held out"), ("greedy", "most likely")):
        run_folder(tmp_path, kind, records=[record(said=text)])
    told = CliRunner().invoke(app, ["show", str(tmp_path), *options])
    assert told.exit_code == 0 and said in told.output


def test_no_more_are_shown_than_there_are():
    episodes = [{"task_id": "t", "status": "completed", "outcome": float(n)} for n in range(3)]
    assert [one["outcome"] for one in choose(episodes, Choice(worst=9, best=9))] == [0.0, 1.0, 2.0]
    assert [one["outcome"] for one in choose(episodes, Choice(best=1))] == [2.0]
    assert json.dumps(choose(episodes, Choice(worst=0))) == "[]"
