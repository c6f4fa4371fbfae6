"""Mathematical equivalence: what is taken as the answer, what is not computed, and what equals what."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.errors import RewardError, TaskError
from rlft.rewards.grader import spoken
from rlft.rewards.math import CANARIES, math_equal
from rlft.rewards.math.caps import Unsupported, check
from rlft.rewards.math.equal import parse, tidy
from rlft.rewards.math.extract import MAX_LENGTH, extract
from rlft.rewards.math.reward import reference
from rlft.types import Task

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "math_verify_cases.json").read_text())

PROSE = "the answer stands in prose, unmarked: no number is picked from a text"
COMMA = "1,22 is the list 1 and 22, as in a box; a decimal comma is read only after 0"
FALSE = "an equation between two numbers that differ is no answer: it would name both"
# Published verdicts that are not ours, by answer, with the reason.
CORRECTIONS = {
    "1000,99": COMMA,
    "1.22": COMMA,
    "Soucis : 2,74 $ a..": PROSE,
    "the number is not 10 which is 1,000.99€": PROSE,
    "so the number is 10 which is 1,000.99m²": PROSE,
    "not it's not 10 it's 1,000.99m²": PROSE,
    "Alice wins the game is 2/3.": PROSE,
    "there are 12 distinct arithmetic sequences": PROSE,
    "Jane started growing Sphere 3 hours ago": PROSE,
    "position increases by 100%.": PROSE,
    "The final answer is $10,455$": "there is a box (with 255), so the box is the answer",
    "${35 cm,4}$": "boxes with no 'and', 'or' or comma between them are no list: the last one counts",
    "W(x)=1orW(x)=-1": "the gold answer's box is never closed: the task is refused",
    r"\frac{1}{2} \$ = \frac{10}{9}": FALSE,
    "$x = 5+5+1 = 7 =11$": FALSE,
    r"$x = 5+5+1 = 1/3 \approx 11$": FALSE,
    r"$x=1/3\approx1.3$": FALSE,
    "$z = 3+3 = 2$": FALSE,
    r"$-2 \\le x \\le 7$": "an inequality is the set that it describes, unless allow_set_relation_comp = false",
    r"$1 + \frac{1}{\mathrm{e}}$": "1 + 1/e is not 1 - 1/e (the library reads neither)",
}


def grade(answer, gold, **options):
    task = Task("t", (), gold)
    return math_equal(task, spoken(task, answer), **options)


def boxed(answer, gold, **options):
    return grade(rf"so it is \boxed{{{answer}}}.", gold, **options)[0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{4}", "4"),
        (r"first \boxed{3}. No, wrong: it has to be \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1, \right.}", r"\left\{ 1, \right."),  # an escaped brace is no brace
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"$\boxed{x = 3.}$", "x = 3"),
        (r"\boxed{$7$}", "7"),
        (r"\boxed{\boxed{6}}", "6"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$, or $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{8}" + "\n\n**Final Answer**\n" + r"\boxed{8}", "8"),
    ],
)
def test_the_answer_is_the_last_box_or_the_list_that_ends_with_it(text, answer):
    assert extract(text).latex == answer


@pytest.mark.parametrize(
    "text", ["", "4", "The answer is 4.", "$4$", r"\boxed{4", r"\boxed{3} then \boxed{4", r"\boxed4", r"\boxed{}", r"\boxed{ $ }"]
)
def test_without_a_closed_box_there_is_no_answer(text):
    assert extract(text).latex == "" and extract(text).problem


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{4}, the answer is 5", "4"),
        ("<answer>1</answer> no <answer> 4 </answer>, the answer is 5", "4"),
        ("The answer is 3. The final answer is: **4**.\nI hope it is correct.", "4"),
        ("Answer: $4$ apples", "4"),
        ("Answer $$\n4\n$$", "4"),
        ("Final Answer: The largest $n$ is 4.", "4"),
        ("so $x=4$ or $x = 5$.", "x=4, x = 5"),
        ("because $3 < 4$, we have \\[ 4 \\] and so on", "4"),
        ("so it is $28$ percent", "28 percent"),
        ("He sells 9 eggs.\n#### 18", "18"),
        ("The answer is 9.\n#### 18\n", "18"),
        ("#### 9\nNo: the answer is 18.", "18"),
        ("The answer is 18 dollars.", "18 dollars"),
        ("-3.5", "-3.5"),
        (r"\frac{10}{9}", r"\frac{10}{9}"),
    ],
)
def test_other_marks_count_where_that_is_asked_for(text, answer):
    assert extract(text, "boxed_or_last").latex == answer


@pytest.mark.parametrize("text", ["there are 4 of them", "4 apples\nor so", "the answer", "", "x" * 10])
def test_no_number_is_picked_from_prose(text):
    assert extract(text, "boxed_or_last").latex == ""


def test_an_answer_over_the_limit_is_none_however_it_begins_and_ends():
    fits, over = "1" + " " * (MAX_LENGTH - 2) + "1", "1" + " " * (MAX_LENGTH - 1) + "1"
    assert extract(rf"\boxed{{{fits}}}").latex == fits
    for text, mode in [(rf"\boxed{{{over}}}", "boxed"), (f"<answer>{over}</answer>", "boxed_or_last"), (over, "whole")]:
        found = extract(text, mode)
        assert (found.latex, found.problem) == ("", "the answer has 2001 characters; at most 2000 are read")


@given(st.text(alphabet=r"\boxed{}$()[] 1,and.<answer>/\n"), st.sampled_from(["boxed", "boxed_or_last", "whole"]))
def test_extraction_answers_whatever_the_text(text, mode):
    found = extract(text, mode)
    assert bool(found.latex) != bool(found.problem) and len(found.latex) <= MAX_LENGTH


def test_extraction_of_hostile_texts_ends_well_before_the_deadline_of_the_reward():
    for part in (r"\boxed{", r"\[", "$", r"\(", "<answer>", "answer is ", "{", "answer: $", r"\boxed{1}, ", "answer is 1" + " " * 10_000):
        for mode in ("boxed", "boxed_or_last", "whole"):
            started = time.process_time()
            extract(part * (50_000 // len(part)), mode)
            assert time.process_time() - started < math_equal.rlft_defaults.options["timeout_s"], (part, mode)


@pytest.mark.parametrize(
    ("latex", "why"),
    [
        ("9^{9^{9}}", "exponent"),
        ("2**10001", "exponent"),
        ("2^{-10001}", "exponent"),
        ("2^{2^{2^{2}}}", "powers in one another"),
        ("x^{y^{z^{w}}}", "powers in one another"),
        (r"(10^{100})^{9999}", "digits"),
        ("10001!", "factorial"),
        ("(10^{5})!", "factorial"),
        ("8!!", "factorial"),
        (r"\binom{100001}{2}", "binomial"),
        (r"\binom{10^{6}}{2}", "binomial"),
        (r"\Gamma(10001)", "gamma"),
        (r"\Gamma\left(10^5\right)", "gamma"),
        (r"\sum_{k=1}^{10001} k", "sum"),
        (r"\prod_{k=1}^{10^5} k", "prod"),
        (r"\int_{-10^5}^{0} x dx", "int"),
        ("1e10001", "number beyond"),
        ("7" * 501, "500 digits"),
        ("(" * 41 + "1" + ")" * 41, "nested"),
        (r"\log" * 41 + "2", "nested"),
        ("-" * 41 + "2", "nested"),
        (r"\{" + "1," * 100 + r"1\}", "100 elements"),
    ],
)
def test_what_cannot_be_computed_in_time_is_refused(latex, why):
    with pytest.raises(Unsupported, match=why):
        check(latex)


@pytest.mark.parametrize(
    "latex",
    [
        "2^{1000}-1", "10^{100}", "2^{3^{2}}", r"e^{x^{2}}", "100!", "7!!", "(n+1)!", r"\binom{100}{50}", r"\Gamma(\frac{1}{2})",
        r"\sum_{k=1}^{10000} k", r"\sum_{n=1}^{\infty} \frac{1}{n^2}", r"\int_0^{\infty} e^{-x^2} dx", "7" * 500, "6.02e23",
        "(" * 40 + "1" + ")" * 40, "[0, 1)", r"x_{1}^{2} + x_{10001}", r"a \equiv 3 \pmod{10^9+7}", "1,000,000", "1234567",
    ],
)  # fmt: skip
def test_ordinary_answers_are_within_the_caps(latex):
    check(latex)


@given(st.text(alphabet=r"\sum binom\frac^_{}()[]!*0123456789xe+-,. Γ"))
def test_the_caps_answer_whatever_the_text(text):
    try:
        check(text)
    except Unsupported as beyond:
        assert str(beyond)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("4", "4"), ("4.0", "4"), ("004", "4"), ("+4", "4"), (r"\frac{1}{2}", "0.5"), ("1/2", r"\dfrac12"), ("50\\%", r"50\%"),
        ("1,000", "1000"), ("1{,}000.5", "1000.5"), (r"32,\! 349", "32349"), (r"10\,000", "10000"), ("6.02e3", "6020"), ("2**10", "1024"),
        ("2^-1", "1/2"), (r"\$5", "5"), ("5€", "5"), ("−3", "-3"), ("3²", "9"), ("√2", r"\sqrt{2}"), ("x ≤ 2", r"x \leq 2"),
        (r"x^2+2x+1", "(x+1)^2"), (r"\{2, 1\}", "1,2"), ("(1, 2)", "(1,2)"), (r"x=5", "5"), (r"5\text{ cm}", "5"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\frac{-1 \pm \sqrt{13}}{4}", r"\frac{-1-\sqrt{13}}{4}, \frac{-1+\sqrt{13}}{4}"), (r"1-\frac{1}{\mathrm{e}}", r"1 - e^{-1}"),
        ("0.3333333", r"\frac{1}{3}"), ("12:00", "12:00"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        ("2", 2), ("0.5", 0.5), ("72", "He has 48 + 24 = <<48+24=72>>72 left.\n#### 72"), ("7", r"So the answer is $\boxed{7}$."),
    ],
)  # fmt: skip
def test_equal_answers_earn_one(answer, gold):
    assert boxed(answer, gold) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("4", "5"), ("12", "1 2"), ("0.5", "0.05"), ("(1, 2)", "[1, 2]"), ("(1, 2)", "(2, 1)"), ("1, 2", "2"), ("x+1", "y+1"),
        (r"1-\frac1e", r"1+\frac1e"),
        (r"\sqrt{2}", "2"), ("1:00", "12:00"), ("B", "A"), (r"\frac{1}{0}", "5"), ("nonsense ((", "5"), ("3 or 4", "4"), ("4", "-4"),
        ("__import__('os').system('true')", "5"), ("4\x00", "4"), ("\ud800", "4"),
    ],
)  # fmt: skip
def test_other_answers_earn_nothing(answer, gold):
    assert boxed(answer, gold) == 0.0


def test_feedback_says_what_is_wrong_but_not_what_is_right():
    assert grade("42", "17") == (0.0, r"no answer in a closed \boxed{}")
    assert grade(r"\boxed{42}", "17") == (0.0, "the answer is not equal to the expected one")
    assert grade(r"\boxed{4 +}", "17") == (0.0, "the answer cannot be read as mathematics")
    assert grade(r"\boxed{17}", "17") == (1.0, "")


@pytest.mark.parametrize(
    "answer",
    [r"\boxed{3} or \boxed{4}", r"\boxed{3}, \boxed{4}", r"\boxed{3, 4}", "\\boxed{3}\n\\boxed{4}", r"\boxed{4 \text{ or } 3}"],
)
def test_naming_several_answers_does_not_earn_the_one_among_them(answer):
    assert grade(answer, "4")[0] == grade(answer, "3")[0] == 0.0
    assert grade(answer, r"\{3, 4\}")[0] == 1.0


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"\boxed{1e999999999}", "1"),
        ("\\boxed{" + r"\frac{1}{1+" * 1800, "1"),
        ("\\boxed{" + r"\frac{1}{1+" * 1800 + "1" + "}" * 1800 + "}", "1"),
        ("\\boxed{1" + "0" * 5000 + "}", "1"),
        ("\\boxed{" + "1 " * 5000 + "}", "1"),
        ("\\boxed{" + " " * 5000 + "1}", "1"),
        ("\\boxed{1" + "+0" * 5000 + "}", "1"),
        ("1e999999999", "1"),
        (r"\frac{1}{1+" * 1800, "1"),
        ("1 " * 5000, "1"),
    ],
)
@pytest.mark.parametrize("mode", ["boxed", "boxed_or_last", "whole"])
def test_no_part_of_an_answer_is_taken_for_the_answer(text, gold, mode):
    try:
        assert grade(text, gold, extract=mode)[0] == 0.0
    except RewardError as refused:
        assert "not computed: " in str(refused)


def test_what_is_beyond_the_caps_is_refused_but_not_where_the_text_is_the_same():
    with pytest.raises(RewardError, match="not computed: an exponent of more than 10000") as refused:
        boxed("2^{99999}", "2^{9999}")
    assert not isinstance(refused.value, TaskError)
    assert boxed(" 2^{ 9999 }", "2^{9999}") == 1.0


@pytest.mark.parametrize("gold", [None, "", "  ", "$$", "4 +", "9^{9^{9}}", "1" * 3000, r"\boxed{4", "a note: (see ((text)"])
def test_a_task_whose_answer_nothing_can_be_compared_with_is_refused_whatever_is_said(gold):
    for text in ("", r"\boxed{4}", rf"\boxed{{{gold}}}"):
        with pytest.raises(TaskError, match="math_equal cannot compare with the answer .* of task 't': "):
            grade(text, gold)


def test_an_unknown_mode_is_an_error():
    with pytest.raises(TaskError, match="extract 'first'; expected one of boxed, boxed_or_last, whole"):
        grade("4", "4", extract="first")


def test_options_reach_the_comparison():
    assert boxed("1.2345", "1.2344", float_rounding=3) == 1.0 != boxed("1.2345", "1.2344", float_rounding=4)
    assert boxed("f(y)", "f(x)", strict=False) == 1.0 != boxed("f(y)", "f(x)")
    interval = (r"-2 \le x \le 7", r"x \in [-2,7]")
    assert boxed(*interval) == 1.0 != boxed(*interval, allow_set_relation_comp=False)
    for answer, gold in ((r"5\text{ km}", r"5\text{ m}"), ("12", "12_8"), ("1100_2", "1100_3")):
        assert boxed(answer, gold, units=False) == 1.0 != boxed(answer, gold)
    with pytest.raises(RewardError):
        boxed("8!!", "5")
    assert boxed("8!!", "5", caps=False) == 0.0


def published_verdict(case):
    try:
        return bool(grade(case["answer"], case["gold"], extract="boxed_or_last", **case.get("options", {}))[0])
    except TaskError:
        return None


@pytest.mark.slow
def test_the_published_cases_of_math_verify_come_out_as_published_but_for_the_corrections():
    """The cases of math-verify 0.9.0's own tests; of long texts the end, as far as the verdict needs it."""
    assert (len(PUBLISHED), sum(case["equal"] for case in PUBLISHED)) == (266, 223)
    other = [case["answer"] for case in PUBLISHED if published_verdict(case) != case["equal"]]
    explained = {answer: [reason for part, reason in CORRECTIONS.items() if part in answer] for answer in other}
    assert [answer for answer, reasons in explained.items() if len(reasons) != 1] == []
    assert len(other) == len(CORRECTIONS) == 20


def test_every_published_gold_answer_earns_one():
    golds = {case["gold"] for case in PUBLISHED}
    usable = {gold for gold in golds if not reference(gold).problem and len(parse(tidy(reference(gold).latex))) > 1}
    assert len(golds - usable) <= 3
    assert {gold for gold in usable if boxed(reference(gold).latex, gold) != 1.0} == set()


def test_the_canaries_are_of_both_kinds_and_come_out_as_they_should():
    assert [math_equal(canary.task, spoken(canary.task, canary.text))[0] for canary in CANARIES] == [1.0] * 4 + [0.0] * 4
    assert [canary.value for canary in CANARIES] == [1.0] * 4 + [0.0] * 4
    assert math_equal.rlft_defaults.canaries == CANARIES
    assert math_equal.rlft_defaults.options == {"timeout_s": 2.0, "memory_mb": 1024, "on_error": 0.0}


@pytest.mark.parametrize(
    ("first", "setting", "integers"),
    [("", None, "python python"), ("import sympy; ", None, "gmpy gmpy"), ("", "gmpy", "gmpy gmpy")],
)
def test_integers_are_pythons_unless_sympy_was_there_first_or_something_else_is_set(first, setting, integers, monkeypatch):
    monkeypatch.delenv("MPMATH_NOGMPY", raising=False)
    monkeypatch.delenv("SYMPY_GROUND_TYPES", raising=False)
    if setting:
        monkeypatch.setenv("SYMPY_GROUND_TYPES", setting)
    code = f"{first}import rlft.rewards.math, mpmath, sympy.external.gmpy as of_sympy; print(of_sympy.GROUND_TYPES, mpmath.libmp.BACKEND)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1], capture_output=True, text=True, timeout=120)
    assert ran.stdout.split() == integers.split(), ran.stderr
