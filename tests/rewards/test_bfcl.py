"""BFCL's single-turn items, with their possible answers as they are: right calls earn 1, wrong ones do not, and its own checker agrees."""

import importlib.util
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bfcl import CATEGORIES, WITHOUT_CALL, items, right_calls, task_of, written_otherwise, wrong_calls  # noqa: E402

from rlft.errors import TaskError  # noqa: E402
from rlft.rewards.function_call import function_call  # noqa: E402
from rlft.rewards.grader import spoken  # noqa: E402

PACKAGE = importlib.util.find_spec("bfcl_eval")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="bfcl-eval is not installed")
DATA = Path(PACKAGE.origin).parent / "data" if PACKAGE else Path()
BROKEN = {
    "live_simple_106-63-0",  # nothing is accepted for an argument that may not be left out
    "live_simple_112-68-0",  # the same
    "live_multiple_862-181-3",  # an argument that has to be given and that the tool does not have
    "live_multiple_964-207-0",  # the same
}
REFUSED_ALONE = ("type_error:", "simple_function_checker:missing_required", "value_error:dict_value", "value_error:others")
SAMPLE = 25  # every so many in the tests that always run


def value(task, calls, **options):
    return function_call(task, spoken(task, json.dumps(calls)), ordered=False, **options)[0]


def graded(item, answer):
    """(kind, whether it is right, what it earned, calls) of right and wrong answers to an item."""
    task = task_of(item, answer)
    for last, optional in itertools.product((False, True), repeat=2):
        calls = right_calls(item, answer, last, optional)
        yield "right", True, value(task, calls), calls
    for kind, calls in wrong_calls(item, answer):
        yield kind, False, value(task, calls), calls


@pytest.mark.parametrize("category", CATEGORIES)
def test_of_a_sample_every_right_answer_earns_1_and_no_wrong_one_does(category):
    for item, answer in items(DATA, category, SAMPLE):
        for kind, right, earned, calls in graded(item, answer):
            assert (earned == 1.0) == right, (kind, item["id"], calls)


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_an_answer_that_cannot_be_given_is_a_broken_task(name):
    (found,) = [(item, answer) for item, answer in items(DATA, name.rpartition("_")[0]) if item["id"] == name]
    with pytest.raises(TaskError):
        value(task_of(*found), [])


@pytest.mark.parametrize("category", WITHOUT_CALL)
def test_where_no_call_is_right_none_earns_1_and_any_does_not(category):
    for item, _ in items(DATA, category, SAMPLE):
        task = task_of(item, [])
        assert function_call(task, spoken(task, "None of these tools can do that."))[0] == 1.0
        if item["function"]:
            assert value(task, [{"name": item["function"][0]["name"], "arguments": {}}]) < 1.0


@pytest.mark.nightly
@pytest.mark.parametrize("category", CATEGORIES)
def test_of_all_items_every_right_answer_earns_1_and_no_wrong_one_does(category):
    counted = Counter()
    for item, answer in items(DATA, category):
        try:
            for kind, right, earned, calls in graded(item, answer):
                assert (earned == 1.0) == right, (kind, item["id"], calls)
                counted[right] += 1
        except TaskError:
            assert item["id"] in BROKEN
            counted["broken"] += 1
    print(category, dict(counted))


@pytest.mark.nightly
@pytest.mark.parametrize("category", CATEGORIES)
def test_bfcls_own_checker_agrees_but_where_it_is_said_why(category, their_checker):
    """With loose texts. What it alone refuses: a whole float where an integer is due, an argument left out that its answer says may
    be and its schema says may not, and a text in a list in an object or where its schema wants no text, which it compares exactly."""
    counted = Counter()
    for item, answer in items(DATA, category):
        if item["id"] in BROKEN:
            continue
        task = task_of(item, answer)
        same = right_calls(item, answer)
        for kind, calls in [("right", same), *wrong_calls(item, answer), *written_otherwise(same)]:
            theirs, why = their_checker(item, calls, answer, category)
            ours = value(task, calls, loose=True) == 1.0
            counted["agree" if theirs == ours else why] += 1
            if theirs != ours:
                assert ours and why.startswith(REFUSED_ALONE), (kind, item["id"], why)
    print(category, dict(counted))


@pytest.fixture
def their_checker(monkeypatch):
    """The checker alone; the modules that it loads for the sake of other languages and of models' names need packages that are not here."""
    names = SimpleNamespace(underscore_to_dot=False)
    converters = "bfcl_eval.eval_checker.ast_eval.type_convertor"
    for name, held in {
        "bfcl_eval.constants.model_config": {"MODEL_CONFIG_MAPPING": {"m": names}},
        f"{converters}.java_type_converter": {"java_type_converter": None},
        f"{converters}.js_type_converter": {"js_type_converter": None},
    }.items():
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def check(item, calls, answer, category):
        said = [{call["name"]: call["arguments"]} for call in calls]
        found = ast_checker(item["function"], said, answer, Language.PYTHON, category, "m")
        tried = [why["sub_error_type"] for one in found["error"] if isinstance(one, dict) for why in one.values()]  # of parallel calls
        return found["valid"], max([*tried, found.get("error_type", "")], key=lambda why: why.startswith(REFUSED_ALONE))

    return check
