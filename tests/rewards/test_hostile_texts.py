"""Texts of 100 kB that a policy could write to hurt: every verifier answers them with a number, well within its time."""

import itertools
import time

import pytest

from rlft.config import RewardPoolConfig
from rlft.rewards import builtin, choice, countdown, function_call, instructions, quantity, ranking, sql, structured, text
from rlft.rewards.code import extract_program
from rlft.rewards.code_values import Comparison, same_output
from rlft.rewards.grader import spoken
from rlft.rewards.math import latex, math_equal, units
from rlft.rewards.math.extract import MAX_LENGTH, extract
from rlft.types import Task

SIZE = 100_000
DEADLINE_S = RewardPoolConfig().timeout_s  # of a reward that names none
MATH_S = math_equal.rlft_defaults.options["timeout_s"]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]
IDS = [name for name in instructions.CHECKS if not name.startswith("language")]
ARGUMENTS = {
    "keywords:existence": {"keywords": ["sea"]},
    "keywords:frequency": {"keyword": "sea", "frequency": 9, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["a"]},
    "keywords:letter_frequency": {"letter": "q", "let_frequency": 9, "let_relation": "at least"},
    "length_constraints:number_sentences": {"num_sentences": 3, "relation": "less than"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 3},
    "length_constraints:number_words": {"num_words": 3, "relation": "less than"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "sea"},
    "detectable_content:number_placeholders": {"num_placeholders": 3},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:number_bullet_lists": {"num_bullets": 3},
    "detectable_format:number_highlighted_sections": {"num_highlights": 3},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 3},
    "combination:repeat_prompt": {"prompt_to_repeat": "say it"},
    "startend:end_checker": {"end_phrase": "bye"},
    "change_case:capital_word_frequency": {"capital_frequency": 3, "capital_relation": "less than"},
}
CHECKED = {"instruction_id_list": IDS, "kwargs": [ARGUMENTS.get(name, {}) for name in IDS]}
OPTIONS = {"options": ["Rome", "Paris"]}
VERIFIERS = {
    "exact_match": (builtin.exact_match, "seven", {}, {}),
    "number_match": (builtin.number_match, "77.25", {}, {}),
    "format_tags": (builtin.format_tags, "", {}, {"tags": ["think", "answer"]}),
    "multiple_choice": (choice.multiple_choice, "E", {}, {}),
    "multiple_choice by text": (choice.multiple_choice, "B", OPTIONS, {}),
    "quantity": (quantity.quantity, "77.25 km/h", {}, {}),
    "countdown": (countdown.countdown, None, {"numbers": [7, 25], "target": 32}, {}),
    "json_schema": (structured.json_schema, None, {"schema": {"type": "object", "required": ["seven"]}}, {}),
    "key_value_f1": (structured.key_value_f1, {"seven": 7}, {}, {}),
    "graph_f1": (structured.graph_f1, [["sea", "land"]], {}, {}),
    "set_match": (ranking.set_match, ["sea", "land"], {}, {}),
    "list_match": (ranking.list_match, ["sea", "land"], {}, {}),
    "ranking": (ranking.ranking, ["sea", "land"], {}, {}),
    "function_call": (function_call.function_call, {"name": "add", "arguments": {"x": 7}}, {"tools": TOOLS}, {}),
    "instructions": (instructions.instructions, None, CHECKED, {"loose": True}),
    "bleu": (text.bleu, "the cat " * 300, {}, {}),
    "chrf": (text.chrf, "the cat " * 300, {}, {}),
    "rouge": (text.rouge, "the cat " * 300, {}, {}),
    "rouge of sentences": (text.rouge, "the cat sat.\n" * 100, {}, {"which": "rougeLsum"}),
    "sql_equal": (sql.sql_equal, "SELECT 7", {"schema": "CREATE TABLE t (a);"}, {}),
}
PARTS = [
    "a", "1", " ", "\n", ".", ",", "(", "{", "[", "<", "\\", "$", "*", "-", "`", "=", "\t", "\r", "\u2028", "\u0661", "\ud800", "\x00",
    "1 ", "1,", "1.", "1e", "1/", "1 km", "km/", "A ", "A,", "(A)", "\\boxed{", "<answer>", "</answer>", "</think>", "```", "```json\n",
    "answer is ", "Answer: ", "is correct ", "Option A is ", "\\text{", "[1,", '{"a":', "<tool_call>", "->", "a->", "[a]>", "a\n", "p.\n",
    "\\frac{", "$1$, ", "\\[", "\\(", "#### ", "<<", "***", "* a", "[x", "Section 1", "'", "--", "/*", "a.b", "Mr. ", "\\dot{", "1,000",
]  # fmt: skip


def slowest(fn, ends=("x",)):
    """The longest time on a processor that one of the texts takes, and which."""
    found = (0.0, "", "")
    for part, end in itertools.product(PARTS, ends):
        said = part * (SIZE // len(part)) + end
        started = time.process_time()
        fn(said)
        found = max(found, (time.process_time() - started, part, end))
    return found


def checked(name):
    reward, answer, meta, options = VERIFIERS[name]
    task = Task("t", ({"role": "user", "content": "?"},), answer, meta)

    def grade(said):
        value = reward(task, spoken(task, said), **options)
        value = value[0] if isinstance(value, tuple) else value
        assert value < 1, said[:20]

    return grade


@pytest.mark.slow
@pytest.mark.parametrize("name", VERIFIERS)
def test_every_verifier_answers_a_hostile_text_in_time_and_with_no_reward(name):
    seconds, part, end = slowest(checked(name))
    assert seconds < DEADLINE_S / 2, (part, end)


@pytest.mark.nightly
@pytest.mark.parametrize("name", VERIFIERS)
def test_every_verifier_answers_a_hostile_text_in_time_however_it_ends(name):
    seconds, part, end = slowest(checked(name), ends=("", "\n", "}", "1"))
    assert seconds < DEADLINE_S / 2, (part, end)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["boxed", "boxed_or_last", "whole"])
def test_the_answer_in_a_hostile_text_is_found_in_time(mode):
    seconds, part, end = slowest(lambda said: extract(said, mode))
    assert seconds < MATH_S / 2, (part, end)


def test_what_is_done_to_an_answer_before_it_is_parsed_takes_next_to_no_time():
    for fn in (latex.tidy, units.split, units.currency, units.plain_numerals):
        parts = [*PARTS, "\\text{a}", "1_2", "1 1/2 ", "\\dot{1}"]
        for part, before, after in itertools.product(parts, ("", "5", "0."), ("", "x", "\\text{a}!")):
            said = (before + part * MAX_LENGTH)[: MAX_LENGTH - 10] + after
            started = time.process_time()
            fn(said)
            assert time.process_time() - started < MATH_S / 4, (fn.__name__, before, part, after)


PRINTED = ["1" * 60_000 + "x", "1." + "1" * SIZE + "x", "1e" + "1" * SIZE, "." * SIZE, "1 " * (SIZE // 2), "-" * SIZE]


@pytest.mark.parametrize("printed", PRINTED)
def test_what_a_program_prints_is_compared_in_time(printed):
    started = time.process_time()
    assert not same_output(printed, "1", Comparison(1e-6))
    assert same_output("1.0 .5 1.e5 -3", "1 0.5 100000 -3", Comparison(1e-6))
    assert time.process_time() - started < DEADLINE_S / 2


def test_a_program_is_found_in_a_hostile_text_in_time():
    seconds, part, end = slowest(extract_program)
    assert seconds < DEADLINE_S / 2, (part, end)
