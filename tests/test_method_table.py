"""The table of methods is what the code says, and every method is a short file that is tested."""

import importlib.util
import re
from pathlib import Path

import pytest

from rlft.algorithms import BUILTIN

_spec = importlib.util.spec_from_file_location("method_table", Path(__file__).with_name("method_table.py"))
method_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(method_table)

MAX_LINES = 105


def test_the_page_holds_the_table_that_the_code_makes():
    assert method_table.START + method_table.table() + method_table.END in method_table.PAGE.read_text()


def test_every_method_stands_in_the_table_with_its_tests_and_a_source():
    lines = {line.split("`")[1]: line for line in method_table.table().splitlines() if line.startswith("| `")}
    assert lines.keys() == BUILTIN.keys()
    untested = [name for name, line in lines.items() if "tests/algorithms" not in line]
    assert untested == []
    unsourced = [name for name, line in lines.items() if "https://arxiv.org/abs/" not in line and "https://doi.org/" not in line]
    assert unsourced == []


def test_a_method_lists_the_tests_of_the_helpers_that_its_file_imports():
    tests = {line.split("`")[1]: line.rpartition(" | ")[2] for line in method_table.table().splitlines() if line.startswith("| `")}
    for test, names in {"test_gae": {"ppo", "vapo", "reinforce_pp"}, "test_covariance": {"clip_cov", "kl_cov"}}.items():
        assert names <= {name for name, listed in tests.items() if test in listed}
    assert not {"test_gae", "test_covariance", "test_masking"} & set(re.findall(r"test_\w+", tests["grpo"]))  # the control


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("On right\nanswers (RFT; or another). Wrong ones.", "On right answers (RFT; or another)"),
        ("Two biases (Dr. GRPO): none.", "Two biases (Dr. GRPO)"),
        ("One thing; another.", "One thing"),
        ("Without a stop\n\nArgs:", "Without a stop"),
    ],
)
def test_what_a_method_is_is_its_docstrings_first_sentence(text, sentence):
    assert method_table.first_sentence(text) == sentence


@pytest.mark.parametrize("name", BUILTIN)
def test_a_methods_own_file_is_read_at_one_sitting(name):
    file = method_table.ROOT / f"{BUILTIN[name].partition(':')[0].replace('.', '/')}.py"
    assert len(file.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", BUILTIN)
def test_every_builtin_method_is_checked_by_the_contract(name):
    tests = [path.read_text() for path in (method_table.ROOT / "tests/algorithms").glob("test_*.py")]
    importing = [text for text in tests if re.search(rf"import .*\b{name}\b", text)]
    assert any("check_algorithm(" in text for text in importing)
