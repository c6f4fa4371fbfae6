"""A task that no reward can grade is found before the run, by every verifier that ships."""

import time

import pytest

from rlft.errors import DataError
from rlft.rewards.compose import compose
from rlft.runs.golds import gradable
from rlft.types import Task

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}}]
RIGHT = {
    "exact_match": {"answer": "4"},
    "number_match": {"answer": "4"},
    "math_equal": {"answer": r"\frac{1}{2}"},
    "code_tests": {"answer": ["assert f(1) == 2"]},
    "json_schema": {"meta": {"schema": {"type": "object"}}},
    "key_value_f1": {"answer": {"a": 1}},
    "graph_f1": {"answer": {"nodes": ["a"], "edges": []}},
    "multiple_choice": {"answer": "B", "meta": {"options": ["red", "blue"]}},
    "quantity": {"answer": "5 km"},
    "list_match": {"answer": ["a", "b"]},
    "ranking": {"answer": ["a", "b"]},
    "function_call": {"answer": [{"name": "add", "arguments": {"a": 1}}], "meta": {"tools": TOOLS}},
    "instructions": {"meta": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}},
    "rouge": {"answer": "a bus is red"},
    "countdown": {"meta": {"numbers": [1, 2, 3], "target": 6}},
    "sql_equal": {"answer": "SELECT 1", "meta": {"schema": "CREATE TABLE t (a INT);"}},
}
WRONG = {
    "exact_match": {"answer": ["4", "5"]},
    "number_match": {"answer": "four"},
    "math_equal": {"answer": r"\frac{1}{"},
    "code_tests": {"answer": 7},
    "json_schema": {"meta": {"schema": {"type": "nonsense"}}},
    "key_value_f1": {"answer": "no table"},
    "graph_f1": {"answer": "no graph"},
    "multiple_choice": {"answer": "G", "meta": {"options": ["red", "blue"]}},
    "quantity": {"answer": "far away"},
    "list_match": {"answer": 7},
    "ranking": {"answer": 7},
    "function_call": {"answer": "add one", "meta": {"tools": TOOLS}},
    "instructions": {"meta": {"instruction_id_list": ["nonsense:none"], "kwargs": [{}]}},
    "rouge": {"answer": ""},
    "countdown": {"meta": {"numbers": "many", "target": 6}},
    "sql_equal": {"answer": "SELECT 1", "meta": {}},
}


def task(name, fields):
    return Task(name, ({"role": "user", "content": "?"},), fields.get("answer"), fields.get("meta", {}))


def looked(reward, tasks, max_failed=1.0):
    return gradable({"data": tasks}, compose(reward), max_failed, 10.0)["data"]


@pytest.mark.parametrize("name", RIGHT)
def test_a_verifier_tells_a_broken_task_from_a_good_one_without_an_answer(name):
    found = looked({name: 1.0}, [task("good", RIGHT[name]), task("broken", WRONG[name]), task("good too", RIGHT[name])])
    assert [one.id for one in found.tasks] == ["good", "good too"], found
    (bad,) = found.bad_rows
    assert (bad.source, bad.row) == ("task broken", 2) and name in bad.reason


def test_a_gate_hides_no_broken_task():
    reward = {"format_tags": {"tags": ["answer"], "gate": 1.0, "weight": 0.0}, "number_match": 1.0}
    assert len(looked(reward, [task("broken", WRONG["number_match"]), task("good", RIGHT["number_match"])]).tasks) == 1


def test_a_run_whose_share_of_broken_tasks_is_too_large_is_refused_with_the_first_of_them():
    tasks = [task(f"broken {i}", WRONG["number_match"]) for i in range(2)] + [task(f"{i}", RIGHT["number_match"]) for i in range(8)]
    assert len(looked({"number_match": 1.0}, tasks, max_failed=0.2).tasks) == 8
    with pytest.raises(DataError, match=r"(?s)\[data\] 2 of 10 tasks cannot be graded.*max_failed = 0.1.*broken 0"):
        looked({"number_match": 1.0}, tasks, max_failed=0.1)


def mine(task, trajectory):
    time.sleep(1000)


def test_a_users_own_reward_is_not_asked_and_nothing_starts_for_it():
    tasks = [task(str(i), {}) for i in range(3)]
    assert looked({mine: 1.0}, tasks).tasks == tasks
