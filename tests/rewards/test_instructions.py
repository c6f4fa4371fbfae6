"""IFEval's constraints: for each a text that keeps it and one that does not, and the modes of the reward."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import RewardError, TaskError
from rlft.rewards.constraints import count_sentences, language_of
from rlft.rewards.grader import spoken
from rlft.rewards.instructions import CHECKS, instructions
from rlft.types import Task

ENGLISH = "this is a plain english sentence about the weather in the north of the country"
GERMAN = "Das ist ein einfacher deutscher Satz \u00fcber das Wetter im Norden des Landes."

# id, arguments, texts that keep it, texts that do not
TABLE = [
    ("keywords:existence", {"keywords": ["sea", "C++"]}, ["The SEA and c++."], ["The sea.", "C+ sea"]),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, ["Go, go!", "ago gone"], ["go"]),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, ["go"], ["Go, go!"]),
    ("keywords:forbidden_words", {"forbidden_words": ["sea", "sky"]}, ["The seaside."], ["The Sea.", "sky"]),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, ["Eee"], ["ee"]),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, "12345"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, ["One. Two.", "One! two"], ["Mr. One.",
        "e.g. one."]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["Only 3.14 here."], ["One. Two."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***a***b***"], ["a", "a***b***c", "a******b", "a\n\nb"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["one two three"], ["one two", "--- ---"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["First.\n\nThen it ended.", "a\n\n'then, b"],
        ["First.\n\nIt ended.", "Then.\n\nThen.\n\nThen.", "then", "a\n\n\n\nthen"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] at [place]"], ["[name]", "[name\n] [x]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye.\nP.S. more", "p. s. x"], ["Bye.", "PS more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x\nP.P.S more", "p. p. s"], ["P.S. more"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n  - b"], ["* a", "* a\n* b\n- c", "** a\n** b"]),
    ("detectable_format:constrained_response", {}, ["My answer is yes.", "So: My answer is maybe."], ["Yes.", "my answer is yes"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and *b*", "*a* **b**"], ["*a*", "** **"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION a SECTION b"],
    ),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n{"a": 1}\n```', "```\n[]\n```"], ["a: 1", '{"a": }', "[" * 9000]),
    ("detectable_format:title", {}, ["<<A poem>>\ntext"], ["<<>>", "<A poem>", "<<A\npoem>>", ">>a<<"]),
    ("combination:two_responses", {}, ["one\n******\ntwo"], ["one", "one******one", "a******b******c", "a******\n******b"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Tell me."}, ["tell me. Well"], ["Well. Tell me."]),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ["x any questions?", '"x. Any questions?"'], ["Any questions? No."]),
    ("startend:quotation", {}, ['"all of it"'], ['"', 'all "of it"', '"half']),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, ["NASA and I"], ["NASA and Esa",
        "2 3"]),
    ("change_case:english_capital", {}, [(ENGLISH + ". " + ENGLISH).upper()], [ENGLISH, GERMAN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.capitalize(), GERMAN.lower(), "123"]),
    ("punctuation:no_comma", {}, ["none; here"], ["one, here"]),
]


def graded(text, ids, kwargs, **options):
    task = Task("t", ({"role": "user", "content": "?"},), None, {"instruction_id_list": ids, "kwargs": kwargs})
    return instructions(task, spoken(task, text), **options)


@pytest.mark.parametrize(("check", "arguments", "kept", "broken"), TABLE)
def test_each_instruction_is_told_from_its_violation(check, arguments, kept, broken):
    everything = {"num_words": None, "keywords": None, **arguments}  # absent arguments are None in IFEval's data
    for text in kept:
        assert graded(text, [check], [everything]) == (1.0, ""), text
    for text in [*broken, "", " \n"]:
        assert graded(text, [check], [everything]) == (0.0, f"violated: {check}"), text


def test_the_table_covers_all_25_instructions():
    assert {check for check, *_ in TABLE} == set(CHECKS) and len(CHECKS) == 25


def test_all_or_the_share_of_instructions():
    ids = ["punctuation:no_comma", "startend:quotation", "keywords:existence"]
    kwargs = [{}, {}, {"keywords": ["sea"]}]
    assert graded('"the sea"', ids, kwargs) == graded('"the sea"', ids, kwargs, mode="share") == (1.0, "")
    assert graded('"the, sea"', ids, kwargs) == (0.0, "violated: punctuation:no_comma")
    assert graded('"the, sea"', ids, kwargs, mode="share") == (pytest.approx(2 / 3), "violated: punctuation:no_comma")
    assert graded("the, sky", ids, json.dumps(kwargs), mode="share")[0] == 0.0


def test_loose_grading_forgives_asterisks_and_a_line_around():
    ids, kwargs = ["startend:end_checker"], [{"end_phrase": "The end."}]
    for text in ("It was.\n**The end.**", "It was. The end.\nHope that helps!"):
        assert graded(text, ids, kwargs)[0] == 0.0
        assert graded(text, ids, kwargs, loose=True)[0] == 1.0
    assert graded("It was. The end.\nHope\nthat helps!", ids, kwargs, loose=True)[0] == 0.0


def test_what_was_thought_is_not_graded():
    assert graded("<think>a, b</think>none", ["punctuation:no_comma"], [{}])[0] == 1.0


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (["keywords:rhyme"], [{}], "unknown instruction 'keywords:rhyme'"),
        (None, None, "instruction_id_list"),
        ([], [], "instruction_id_list"),
        (["punctuation:no_comma"], [], "kwargs"),
        (["punctuation:no_comma"], None, "kwargs"),
        (["keywords:existence"], [{}], "wrong arguments"),
        (["punctuation:no_comma"], [{"commas": 3}], "wrong arguments"),
        (["length_constraints:number_words"], [{"num_words": "3", "relation": "at least"}], "wrong arguments"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}], "relation"),
    ],
)
def test_tasks_that_cannot_be_graded_raise(ids, kwargs, message):
    with pytest.raises(TaskError, match=message):
        graded("text", ids, kwargs)
    with pytest.raises(RewardError, match="mode"):
        graded("text", ["punctuation:no_comma"], [{}], mode="most")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("no stop", 1),
        ("One.", 1),
        ("One. Two! Three?", 3),
        ("Wait... what?!", 2),
        ("Dr. Who met J. R. Smith, e.g. at 3.30 sharp.", 1),
        ("It was I. Then you.", 2),
        ("1. First item.\n2. Second item.", 2),
        ('He said "No." Then he left.', 2),
        ("\u4f60\u597d\u3002\u518d\u89c1\uff01", 2),
        ("... !!! ???", 0),
    ],
)
def test_sentences_are_counted(text, count):
    assert count_sentences(text) == count


def test_a_language_is_always_the_same():
    text = "ok la casa"
    assert len({language_of(text) for _ in range(20)}) == 1
    assert (language_of(ENGLISH), language_of(GERMAN), language_of("123"), language_of("")) == ("en", "de", "", "")


PIECES = st.sampled_from(["*", "**", "***", "\n", "\n\n", "[", "]", "<<", ">>", '"', ",", ".", "!", "- ", "P.S.", "SECTION 1", "sea", "{",
    "}", "\ud800", "\x00", " "])


@settings(deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=30).map("".join)))
def test_any_text_earns_a_number_between_0_and_1(text):
    ids, kwargs = [check for check, *_ in TABLE], [arguments for _, arguments, *_ in TABLE]
    for loose in (False, True):
        assert 0 <= graded(text, ids, kwargs, mode="share", loose=loose)[0] <= 1


@pytest.mark.parametrize("piece", ["*", "[", "<<", "!", ".", "\n", " ", "a@", "P.", "SECTION", "a. ", "x"])
def test_long_texts_made_to_hurt_do_not(piece):
    ids, kwargs = [check for check, *_ in TABLE], [arguments for _, arguments, *_ in TABLE]
    started = time.perf_counter()
    graded(piece * (200_000 // len(piece)), ids, kwargs, mode="share")
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(("check_id", "key"), [("keywords:existence", "keywords"), ("keywords:forbidden_words", "forbidden_words")])
@pytest.mark.parametrize("given_words", ["sea", [""], [3]])
def test_words_that_are_no_list_of_texts_are_a_broken_task(check_id, key, given_words):
    task = Task("t", ({"role": "user", "content": "?"},), None, {"instruction_id_list": [check_id], "kwargs": [{key: given_words}]})
    with pytest.raises(TaskError, match="expected a list of texts"):
        instructions(task, spoken(task, "s e a"))
