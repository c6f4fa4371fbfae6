"""Nothing that a model, data or a server wrote does anything to the terminal on which a run tells of it."""

import asyncio
import io
import json
import sys

import cloudpickle
import pytest
from rich.console import Console

from rlft.config import DataConfig, validate
from rlft.errors import visible
from rlft.report.evaluation import Evaluation
from rlft.report.screen import Screen
from rlft.report.summary import show_samples
from rlft.runs.check import Plan, check
from rlft.types import Sampled, Task, TrajectoryInfo

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # grading processes need not import this file

CLIPBOARD, RED, ABOVE, TITLE = "\x1b]52;c;cm0gLXJmIH4=\x07", "\x1b[31m", "\x9b2A", "\x1b]0;title\x1b\\"
HOSTILE = f"a{CLIPBOARD}b{RED}c{ABOVE}d{TITLE}e\rf\x08g\u202eh[/bold][red]"
HARM = set(HOSTILE) - set(visible(HOSTILE))


def console():
    return Console(file=io.StringIO(), force_terminal=True, width=500, color_system=None)


def harmless(printed):
    """Whether nothing is left that a terminal would obey, the codes of rich itself aside."""
    return not set(printed) & HARM


def test_the_control_a_console_alone_lets_them_through():
    screen = console()
    screen.print(HOSTILE, markup=False)
    assert not harmless(screen.file.getvalue())


def test_lines_of_a_run_are_harmless():
    screen = Screen(console())
    screen.say(f"warning: {HOSTILE}")
    assert harmless(screen.console.file.getvalue()) and r"\x1b]52;c;" in screen.console.file.getvalue()


def test_a_live_line_is_harmless():
    screen = Screen(console())
    with screen.phase("rewards", tell=False) as phase:
        phase.explain(HOSTILE)
        plain = console()
        plain.print(screen)
    assert harmless(plain.file.getvalue()) and "rewards" in plain.file.getvalue()


def test_samples_are_harmless_and_their_brackets_no_markup():
    task = Task(HOSTILE, ({"role": "user", "content": HOSTILE},), HOSTILE)
    info = TrajectoryInfo("t", "completed", 1.0, {}, 1, 1, 0)
    screen = console()
    show_samples(screen, {0: Evaluation({}, [Sampled(task, (info,), ((HOSTILE,),))])})
    assert harmless(screen.file.getvalue()) and "[/bold][red]" in screen.file.getvalue()


def refuses(task, trajectory):
    raise ValueError(HOSTILE)


def test_a_check_of_rewards_is_harmless(tmp_path):
    rows = [{"prompt": HOSTILE, "answer": HOSTILE, "id": HOSTILE}, {"prompt": "", "answer": "1", "id": HOSTILE + "2"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(source=str(tmp_path / "a.jsonl"), id="id").model_dump(exclude_unset=True)
    config = validate({"model": "m", "data": data}).model_copy(update={"reward": refuses})
    screen = Console(file=io.StringIO(), width=500)  # on a terminal rich hides the cursor for the sake of its live line
    asyncio.run(check(config, Plan(console=screen)))
    assert harmless(screen.file.getvalue()) and "could not be graded" in screen.file.getvalue()


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand ä 漢", ""])
def test_other_text_stays_as_it_is(text):
    assert visible(text) == text
