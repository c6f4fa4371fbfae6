"""The learning rate's course, as a table."""

import pytest

from rlft.learner.schedule import lr_factor


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 0, 0.25),  # warm-up of 4 steps out of 12
        ("constant", 3, 1.0),
        ("constant", 4, 1.0),
        ("constant", 99, 1.0),
        ("linear", 1, 0.5),
        ("linear", 4, 1.0),
        ("linear", 8, 0.55),  # half way from 1 to 0.1
        ("linear", 12, 0.1),
        ("linear", 99, 0.1),
        ("cosine", 4, 1.0),
        ("cosine", 6, 0.1 + 0.9 * 0.5 * (1 + 2**-0.5)),  # a quarter of the way: cos(pi / 4)
        ("cosine", 8, 0.55),
        ("cosine", 12, 0.1),
    ],
)
def test_factor_follows_the_schedule(schedule, step, factor):
    min_ratio = 0.0 if schedule == "constant" else 0.1
    assert lr_factor(step, 12, schedule, warmup_steps=4, min_ratio=min_ratio) == pytest.approx(factor, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert lr_factor(0, 10, "cosine") == 1.0


def test_warm_up_longer_than_the_run_never_divides_by_zero():
    assert [lr_factor(step, 2, "linear", warmup_steps=4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.0]
