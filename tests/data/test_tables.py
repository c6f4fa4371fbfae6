"""Tables fill each object with the keys of all others; the tasks and pairs that come of them are those of the rows that were written."""

import json
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlft.config import DataConfig, PreferencesConfig
from rlft.data.preferences import load_preferences
from rlft.data.sources import load_tasks
from rlft.rewards.function_call import function_call
from rlft.rewards.grader import spoken


def tool(name, *parameters):
    return {"type": "function", "function": {"name": name, "parameters": {"properties": {p: {"type": "string"} for p in parameters}}}}


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


WEATHER, ADD = call("get_weather", city="Paris"), call("add", a="1", b="2")
TOOLS = [[tool("get_weather", "city")], [tool("add", "a", "b")]]
TASKS = [
    {
        "prompt": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": made}]},
            {"role": "user", "content": "again"},
        ],
        "answer": [made],
        "tools": tools,
        "kwargs": [{"deep": {"deeper": [{key: 1}]}}],
    }
    for made, tools, key in ((WEATHER, TOOLS[0], "x"), (ADD, TOOLS[1], "y"))
]
PAIRS = [
    {
        "prompt": [{"role": "user", "content": "?"}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [{"function": made}]}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for made in (WEATHER, ADD)
]


def jsonl(rows, folder):
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DataConfig(source=str(folder / "a.jsonl"))


def parquet(rows, folder):
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return DataConfig(source=str(folder / "a.parquet"))


def in_a_folder(rows, folder):
    (folder / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "hub" / "train.parquet")
    return DataConfig(source=str(folder / "hub"))


def objects(rows, folder):
    made = "datasets.Dataset.from_list(json.loads(rows))"
    (folder / "of_table.py").write_text(f"import datasets, json\n\ndef make(rows):\n    return {made}\n")
    return DataConfig(source="of_table:make", options={"rows": json.dumps(rows)})


def streamed(rows, folder):
    made = "datasets.Dataset.from_list(json.loads(rows)).to_iterable_dataset()"
    (folder / "of_stream.py").write_text(f"import datasets, json\n\ndef make(rows):\n    return {made}\n")
    return DataConfig(source="of_stream:make", options={"rows": json.dumps(rows)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("of_table", "of_stream"):
        sys.modules.pop(name, None)


SOURCES = (jsonl, parquet, in_a_folder, objects, streamed)


@pytest.mark.parametrize("source", SOURCES)
def test_the_right_call_earns_1_whatever_other_rows_hold(folder, source):
    tasks, bad = load_tasks(source(TASKS, folder))
    assert not bad
    for task, row in zip(tasks, TASKS, strict=True):
        assert function_call(task, spoken(task, json.dumps(row["answer"]))) == (1.0, "correct")
    swapped = function_call(tasks[0], spoken(tasks[0], json.dumps(ADD)))
    assert swapped[0] == -2.0  # the control: the other row's call is wrong, and its tool not even known


@pytest.mark.parametrize("source", SOURCES)
def test_answers_meta_and_calls_in_prompts_are_those_of_the_rows(folder, source):
    for task, row in zip(load_tasks(source(TASKS, folder)).tasks, TASKS, strict=True):
        assert task.answer == row["answer"] and dict(task.meta) == {"tools": row["tools"], "kwargs": row["kwargs"]}
        assert task.messages[1]["tool_calls"] == row["prompt"][1]["tool_calls"]


@pytest.mark.parametrize("source", SOURCES)
def test_calls_in_preferred_answers_are_those_of_the_rows(folder, source):
    pairs, bad = load_preferences(source(PAIRS, folder), PreferencesConfig())
    assert not bad
    assert [list(pair.chosen) for pair in pairs] == [row["chosen"] for row in PAIRS]


STATED = [{"prompt": "p", "answer": {"name": "f", "arguments": {"city": None}}, "note": None, "listed": [1, None]}]


def test_a_null_that_a_line_of_json_states_is_kept(folder):
    (task,) = load_tasks(jsonl(STATED, folder)).tasks
    assert task.answer == STATED[0]["answer"] and dict(task.meta) == {"note": None, "listed": [1, None]}


@pytest.mark.parametrize("source", SOURCES[1:])
def test_of_a_table_a_null_cell_and_a_null_in_a_list_are_kept(folder, source):
    rows = [*STATED, {"prompt": "q", "answer": {"name": "g", "arguments": {"city": "Rome"}}, "note": "n", "listed": [2]}]
    task, other = load_tasks(source(rows, folder)).tasks
    assert task.answer == {"name": "f", "arguments": {}} and dict(task.meta) == {"note": None, "listed": [1, None]}
    assert other.answer["arguments"] == {"city": "Rome"}
