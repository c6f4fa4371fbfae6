"""What goes on is said from the first second on, at every width, and no silence is long."""

import io
import threading

import pytest
from rich.console import Console

from rlft.report.lines import Part, StepLine, fit, joined, step_parts
from rlft.report.screen import REPEAT_S, Screen, line_grid

METRICS = {
    "reward/mean": 0.512,
    "reward/std": 0.3,
    "reward/exact_match": 0.5,
    "reward/brief": 0.12,
    "rollout/truncated": 0.25,
    "rollout/failed": 2,
    "rollout/tokens": 31.5,
    "kl/ref": 0.0123,
}
EVALUATION = {"mean": 0.4, "low": 0.35, "high": 0.45, "greedy": 0.5}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def screen(terminal=False, width=200):
    clock, out = Clock(), io.StringIO()
    return Screen(Console(file=out, force_terminal=terminal, width=width), clock), clock, out


def test_a_phase_is_told_at_its_end_with_its_time_and_kept():
    shown, clock, out = screen()
    with shown.phase("reading") as phase:
        phase.count(3, 4, "rows")
        clock.now += 2.5
    with shown.phase("quiet", tell=False):
        clock.now += 1.0
    assert out.getvalue() == "reading: 3 of 4 rows, 2.5 s\n" and shown.seconds == {"reading": 2.5}


def test_what_lasts_is_said_again_when_nothing_was_said_for_long():
    shown, clock, out = screen()
    with shown.phase("engine"), shown.phase("learner"):
        shown.tick()
        clock.now += REPEAT_S - 0.1
        shown.tick()
        assert out.getvalue() == ""
        clock.now += 0.1
        shown.tick()
        shown.tick()
    assert out.getvalue().splitlines()[0] == "engine: 8.0 s; learner: 8.0 s" and REPEAT_S < 10
    assert len(out.getvalue().splitlines()) == 3


def test_nothing_is_said_of_work_that_is_over():
    shown, clock, out = screen()
    with shown.phase("x", tell=False):
        pass
    clock.now += 100
    shown.tick()
    assert out.getvalue() == ""


def test_a_watcher_says_it_without_being_asked():
    shown, clock, out = screen()
    said = threading.Event()
    shown.say = lambda message, style="": said.set()
    with shown.phase("long", tell=False):
        clock.now += REPEAT_S
        assert said.wait(10)


def test_why_a_phase_lasts_is_said_at_once_and_only_when_it_is_news():
    shown, clock, out = screen()
    with shown.phase("rollouts 3", tell=False) as phase:
        phase.explain("")
        phase.explain("reward 'slow' hangs")
        phase.explain("reward 'slow' hangs still")
        clock.now += 12
        shown.tick()
    assert out.getvalue().splitlines() == ["rollouts 3: reward 'slow' hangs", "rollouts 3: 12 s (reward 'slow' hangs still)"]


def test_a_phase_that_raises_is_over_and_its_terminal_given_back():
    shown, _, out = screen(terminal=True)
    with pytest.raises(KeyError), shown.phase("engine"):
        assert "\x1b[?25l" in out.getvalue() and "\x1b[?25h" not in out.getvalue()
        raise KeyError
    assert out.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in out.getvalue()
    assert shown.seconds == {}


def live(width, doing=""):
    console = Console(width=width, record=True, file=io.StringIO())
    line = StepLine(12, 100, step_parts(METRICS, 1234.0, EVALUATION), 140.0)
    console.print(line_grid(line, width, doing))
    (text,) = console.export_text().splitlines()
    return text.rstrip()


def test_at_eighty_columns_step_bar_and_time_left_stay_and_the_interval_goes():
    line = live(80)
    assert line.startswith("step 12/100 ━") and line.endswith("left 0:02:20") and len(line) <= 80
    assert "reward 0.512" in line and "[0.350, 0.450]" not in line


def test_wider_lines_tell_more_and_the_widest_everything():
    outcomes = ["reward 0.512", "exact_match 0.5", "brief 0.12", "eval 0.400"]
    told = [*outcomes, "cut 25%", "failed 2", "length 31.5", "kl 0.012", "1,234 tokens/s"]
    found = {width: [part for part in [*told, "[0.350, 0.450]", "greedy 0.500"] if part in live(width)] for width in (80, 110, 160, 220)}
    assert set(found[80]) < set(found[110]) < set(found[160]) < set(found[220])
    assert {"eval 0.400", "cut 25%", "failed 2"} <= set(found[110]) and set(told) - set(found[160]) <= {"length 31.5", "kl 0.012"}
    assert "[0.350, 0.450]" in found[220] and "[0.350, 0.450]" not in found[160]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 110, 160])
def test_no_line_is_wider_than_its_terminal_and_none_loses_the_time_left(width):
    for doing in ("", "evaluation after step 12: 120 of 200 samples, 12 s"):
        line = live(width, doing)
        assert len(line) <= max(width, len("step 12/100 left 0:02:20")) and ("left 0:02:20" in line or width < 25)


def test_what_goes_on_is_told_before_figures():
    assert "rollouts 13: 5.0 s" in live(80, "rollouts 13: 5.0 s") and "eval" not in live(80, "rollouts 13: 5.0 s")


def test_parts_go_by_rank_and_from_behind():
    parts = [Part("a", 1), Part("b", 3), Part("c", 2), Part("d", 3)]
    assert joined(fit(parts, 100)) == "  a  b  c  d"
    assert [joined(fit(parts, width)).strip() for width in (10, 9, 6, 3, 0)] == ["a  b  c  d", "a  b  c", "a  c", "a", ""]


def test_a_terminal_shows_one_live_line_of_steps_and_keeps_the_last():
    shown, clock, out = screen(terminal=True, width=80)
    for step in (1, 2):
        with shown.phase(f"rollouts {step}", tell=False):
            clock.now += 1.0
        shown.show(StepLine(step, 2, step_parts(METRICS, None, None), 0.0), tell=True)
    shown.close()
    assert "step 2/2" in out.getvalue() and "\x1b[?25h" in out.getvalue()


def test_off_a_terminal_a_step_is_told_when_asked_or_after_long_silence():
    shown, clock, out = screen()
    for step, tell, seconds in ((1, True, 0), (2, False, 1), (3, False, REPEAT_S)):
        clock.now += seconds
        shown.show(StepLine(step, 9, [], 0.0), tell)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/9", "3/9"]


def test_what_ends_the_command_hears_which_phases_last():
    heard = []
    screen = Screen(Console(file=io.StringIO()), doing=heard.append)
    with screen.phase("engine"), screen.phase("learner"):
        pass
    with screen.phase("evaluation"):
        pass
    assert heard == ["engine", "engine, learner", "evaluation"]
