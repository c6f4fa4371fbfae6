"""Throughput of the math verifier against calling math-verify in-process on the same pairs, and its worst time on hostile answers.

    .venv/bin/python benchmarks/math/run.py [pairs] [rounds]      # default 2400 3; writes results.md beside this file
"""

import json
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from rlft.rewards.math.equal import same_text, tidy
from rlft.rewards.math_verifier import MathVerifier

HERE = Path(__file__).parent
HOSTILE = HERE.parents[1] / "tests/rewards/hostile_answers.json"
LIMIT_S = 2.0
SLICE = 100  # pairs of one turn


def matrix(brackets: str, *entries: int) -> str:
    a, b, c, d = entries
    return rf"\begin{{{brackets}matrix}}{a}&{b}\\{c}&{d}\end{{{brackets}matrix}}"


# Kinds of (right answer, gold answer), by four integers.
KINDS = {
    "integer": lambda a, b, c, d: (f"{a * d}", f"{a * d}"),
    "decimal": lambda a, b, c, d: (f"{a}.{b}0", f"{a}.{b}"),
    "fraction": lambda a, b, c, d: (rf"\frac{{{a * c}}}{{{b * c}}}", rf"\frac{{{a}}}{{{b}}}"),
    "percent": lambda a, b, c, d: (rf"{a}.{b}\%", f"{a}.{b} percent"),
    "surd": lambda a, b, c, d: (rf"\sqrt{{{a * a * b}}}", rf"{a}\sqrt{{{b}}}"),
    "polynomial": lambda a, b, c, d: (rf"(x+{a})(x-{b})", rf"x^2+{a - b}x-{a * b}".replace("+-", "-")),
    "pi": lambda a, b, c, d: (rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b}"),
    "set": lambda a, b, c, d: (rf"\{{{a}, {b}, {c}\}}", rf"{c}, {a}, {b}"),
    "interval": lambda a, b, c, d: (rf"\left[{a}, {a + b}\right)", rf"[{a}, {a + b})"),
    "point": lambda a, b, c, d: (rf"({a}, {b}, {c})", rf"\left({a},{b},{c}\right)"),
    "equation": lambda a, b, c, d: (f"x = {a}.{c}", f"{a}.{c}"),
    "matrix": lambda a, b, c, d: (matrix("p", a, b, c, d), matrix("b", a, b, c, d)),
    "power": lambda a, b, c, d: (rf"{a}^{{{c}}} \cdot {b}", rf"{b} \cdot {a}^{{{c}}}"),
    "text": lambda a, b, c, d: (rf"\text{{box{chr(97 + a % 26)}{chr(97 + b % 26)}}}", f"box{chr(97 + a % 26)}{chr(97 + b % 26)}"),
}  # fmt: skip


def pairs(number: int, seed: int) -> list[tuple[str, str]]:
    """Distinct pairs of all kinds in turn, in random order; of a third of them the answer is another one's."""
    draw = random.Random(seed)
    made: dict[tuple[str, str], None] = {}
    while len(made) < number:
        kind = KINDS[list(KINDS)[len(made) % len(KINDS)]]
        a, b, c, d = (draw.randint(2, 97) for _ in range(4))
        answer, gold = kind(a, b, c, d)
        if draw.random() < 1 / 3:
            answer = kind(a + 1, b, c, d)[0]
        made[answer, gold] = None
    shuffled = list(made)
    draw.shuffle(shuffled)
    return shuffled


def in_process(asked: list[tuple[str, str]]) -> list[bool]:
    """math-verify called as its users call it, with its alarms, both sides in a box."""
    from math_verify import LatexExtractionConfig, parse, verify  # after rlft, so that both count with Python's integers

    latex = [LatexExtractionConfig(boxed_match_priority=0)]
    return [bool(verify(parse(rf"\boxed{{{gold}}}", latex), parse(rf"\boxed{{{answer}}}", latex))) for answer, gold in asked]


def correct(verifier: MathVerifier, asked: list[tuple[str, str]]) -> list[bool]:
    return [verdict.status == "correct" for verdict in verifier.verify(asked)]


def hostile(caps: bool) -> tuple[float, Counter[str]]:
    """The longest time that one of the hostile answers took, and how they came out."""
    worst, outcomes = 0.0, Counter[str]()
    with MathVerifier(LIMIT_S, caps=caps) as verifier:
        for case in json.loads(HOSTILE.read_text()):
            answer = "".join(part * times for part, times in case["parts"])
            started = time.perf_counter()
            [verdict] = verifier.verify([(answer if case.get("text") else rf"\boxed{{{answer}}}", case["gold"])])
            worst = max(worst, time.perf_counter() - started)
            outcomes[verdict.status] += 1
    return worst, outcomes


def settled_as_text(pair: tuple[str, str]) -> bool:
    return same_text(*map(tidy, pair)) is not None


def compare(name: str, asked: list[tuple[str, str]]) -> tuple[float, str]:
    """The ratio of throughputs with one process, and a row of the table. They take turns, so that what else runs slows all alike."""
    seconds, equal = [0.0, 0.0, 0.0], 0
    with MathVerifier(30.0, 1) as one, MathVerifier(30.0, 2) as two:
        for turn, start in enumerate(range(0, len(asked), SLICE)):
            part = asked[start : start + SLICE]
            found: list[list[bool]] = [[], [], []]
            for which in ((turn + i) % 3 for i in range(3)):
                started = time.perf_counter()
                found[which] = in_process(part) if which == 0 else correct((one, two)[which - 1], part)
                seconds[which] += time.perf_counter() - started
            assert found[1] == found[2]
            equal += sum(ours == theirs for ours, theirs in zip(found[1], found[0], strict=True))
        right = one.counts["correct"]
    rates = [f"{len(asked) / taken:.0f}" for taken in seconds]
    ratios = [f"{seconds[0] / taken:.2f}" for taken in seconds if taken is not seconds[0]]
    shares = [f"{equal / len(asked):.1%}", f"{right / len(asked):.0%}"]
    return seconds[0] / seconds[1], " | ".join(["", name, str(len(asked)), *rates, *ratios, *shares, ""]).strip()


def throughput(number: int, rounds: int) -> list[str]:
    in_process(pairs(200, -1))  # the parser's tables, as the verifier's processes have them from their start
    everything = [compare(f"all kinds, round {seed}", pairs(number, seed)) for seed in range(rounds)]
    computed = [pair for pair in pairs(number * 5 // 3, rounds) if not settled_as_text(pair)][:number]
    only_ratio, only = compare("only what is not settled as text", computed)
    return [
        "| pairs | number | in-process /s | 1 process /s | 2 processes /s | ratio 1 | ratio 2 | same verdict | correct |",
        "|" + "---|" * 9,
        *[row for _, row in everything],
        only,
        "",
        f"Ratio with one process (to be at least 0.9): median **{statistics.median(ratio for ratio, _ in everything):.2f}**, "
        f"**{only_ratio:.2f}** on what is not settled as text.",
    ]


def main() -> None:
    number, rounds = [int(given) for given in sys.argv[1:]] or (2400, 3)
    load = os.getloadavg()[0]
    system = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    libraries = f"math-verify {version('math-verify')}, sympy {version('sympy')}"
    lines = [
        "# Math verifier",
        "",
        f"`benchmarks/math/run.py {number} {rounds}` on {system}, {libraries}; load average before: {load:.1f}",
        "",
        f"Distinct pairs of {len(KINDS)} kinds in equal parts. In-process: math-verify called in the same program on the same "
        f"pairs, with its own deadlines (alarms), in turns of {SLICE}.",
        "",
        *throughput(number, rounds),
        "",
        f"| hostile answers (65), limit {LIMIT_S:g} s | worst wall s | outcomes |",
        "|---|---|---|",
    ]
    for caps in (True, False):
        worst, outcomes = hostile(caps)
        counted = ", ".join(f"{status} {count}" for status, count in outcomes.most_common())
        lines.append(f"| {'with' if caps else 'without'} caps | {worst:.2f} | {counted} |")
    text = "\n".join(lines) + "\n"
    (HERE / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
