"""Progress is shown as a bar on a terminal, as lines now and then elsewhere, and never changes what it counts."""

import io

from rich.console import Console

from rlft.report.progress import EVERY_S, STRIDE, shown


def printed(items, terminal, seconds=0.0):
    """The items that came through and what was printed, while a look at the clock takes `seconds`."""
    now, out = [0.0], io.StringIO()

    def clock():
        now[0] += seconds
        return now[0]

    came = list(shown(items, "rows read", 2000, Console(file=out, force_terminal=terminal, width=100), clock))
    return came, out.getvalue()


def test_a_terminal_sees_a_bar():
    came, out = printed(range(2000), terminal=True)
    assert came == list(range(2000)) and "rows read" in out and "/2000" in out


def test_elsewhere_a_line_is_printed_when_long_enough_has_passed():
    came, out = printed(range(2000), terminal=False, seconds=EVERY_S)
    assert came == list(range(2000))
    assert out.splitlines()[0] == f"rows read: {STRIDE} of 2,000" and len(out.splitlines()) > 2


def test_short_work_prints_nothing_elsewhere():
    assert printed(range(2000), terminal=False, seconds=0.001) == (list(range(2000)), "")
