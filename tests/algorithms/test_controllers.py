"""Controllers: by hand, on simulated policies, and what they do without a measurement."""

import math

import pytest
import torch

from rlft.algorithms.controllers import adaptive, scheduled, temperature_toward
from rlft.errors import ConfigError

LOGITS = torch.linspace(0, 6, 40, dtype=torch.float64)


def entropy_at(temperature):
    return float(torch.distributions.Categorical(logits=LOGITS / temperature).entropy())


@pytest.mark.parametrize(
    ("measured", "following"),  # start 0.5, target 0.1, horizon 4
    [
        (0.1, 0.5),
        (0.11, 0.5 * (1 + 0.1 / 4)),
        (0.09, 0.5 * (1 - 0.1 / 4)),
        (5.0, 0.5 * (1 + 0.2 / 4)),  # clipped
        (0.0, 0.5 * (1 - 0.2 / 4)),
        (-1.0, 0.5 * (1 - 0.2 / 4)),
    ],
)
def test_the_adaptive_coefficient_is_as_worked_by_hand(measured, following):
    control = adaptive(0.5, target=0.1, horizon=4)
    assert control.start == 0.5
    assert control.next(0.5, {"kl/ref": measured}, 7) == pytest.approx(following)


def test_the_adaptive_coefficient_brings_the_kl_to_its_target_from_both_sides():
    for start in (0.01, 50.0):
        control = adaptive(start, target=0.05, horizon=2)
        value = control.start
        for done in range(1, 400):
            value = control.next(value, {"kl/ref": 0.1 / value}, done)  # a policy whose KL falls with the coefficient
        assert 0.1 / value == pytest.approx(0.05, rel=1e-3)


def test_a_coefficient_that_is_not_adapted_does_not_reach_the_target():
    assert abs(0.1 / scheduled(50.0, 49.0, 1000).next(50.0, {"kl/ref": 0.1 / 50}, 400) - 0.05) > 0.04


def test_the_adaptive_coefficient_grows_with_the_kl_and_never_leaves_the_positive_numbers():
    control = adaptive(0.5, target=0.1, horizon=1)
    values = [control.next(0.5, {"kl/ref": x / 100}, 1) for x in range(-10, 40)]
    assert values == sorted(values) and 0 < values[0] < 0.5 < values[-1]


@pytest.mark.parametrize("metrics", [{}, {"kl/ref": math.nan}, {"kl/ref": math.inf}, {"kl/old": 9.0}], ids=str)
def test_without_a_finite_measurement_the_coefficient_stays(metrics):
    assert adaptive(0.5, target=0.1, horizon=4).next(0.3, metrics, 1) == 0.3
    assert adaptive(0.5, target=0.1, horizon=4, metric="kl/old").next(0.3, {"kl/old": 9.0}, 1) > 0.3  # the control


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]),
        ("cosine", [1.0, 2 - math.sqrt(0.5), 2.0, 2 + math.sqrt(0.5), 3.0, 3.0]),  # 2 - cos(pi k / 4)
    ],
)
def test_schedules_are_as_worked_by_hand(shape, values):
    control = scheduled(1.0, 3.0, steps=4, shape=shape)
    assert [control.start, *(control.next(math.nan, {}, done) for done in range(1, 6))] == pytest.approx(values)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_downwards_mirrors_the_one_upwards(shape):
    up, down = scheduled(0.0, 1.0, 10, shape), scheduled(1.0, 0.0, 10, shape)
    assert all(up.next(0, {}, i) == pytest.approx(1 - down.next(0, {}, i)) for i in range(15))


@pytest.mark.parametrize(
    ("entropy", "step"),  # target 0.3, gain 0.2
    [(0.3, 0.0), (0.15, 0.2 * 0.5), (0.0, 0.2), (0.45, -0.2 * 0.5), (0.6, -0.2), (90.0, -0.2)],
)
def test_the_temperature_steps_are_as_worked_by_hand(entropy, step):
    assert temperature_toward(0.8, entropy, 0.3, 0.2, 0.1, 2.0) == pytest.approx(0.8 * math.exp(step))


@pytest.mark.parametrize("start", [0.3, 1.0, 1.9])
def test_the_temperature_brings_a_softmax_policy_to_the_target_entropy(start):
    temperature = start
    for _ in range(200):
        temperature = temperature_toward(temperature, entropy_at(temperature), 0.3, 0.1, 0.05, 2.0)
    assert entropy_at(temperature) == pytest.approx(0.3, abs=1e-4)
    assert abs(entropy_at(start) - 0.3) > 0.05  # the control: it was not there


def test_the_temperature_approaches_from_one_side_when_the_gain_is_small():
    temperatures = [1.9]
    for _ in range(60):
        temperatures.append(temperature_toward(temperatures[-1], entropy_at(temperatures[-1]), 0.3, 0.02, 0.05, 2.0))
    assert temperatures == sorted(temperatures, reverse=True) and entropy_at(temperatures[-1]) >= 0.3


def test_the_target_is_the_temperatures_fixed_point_and_the_only_one():
    assert temperature_toward(0.7, 0.3, 0.3, 0.2, 0.1, 2.0) == 0.7
    for entropy in (0.0, 0.29, 0.31, 5.0):
        assert temperature_toward(0.7, entropy, 0.3, 0.2, 0.1, 2.0) != 0.7


def test_more_entropy_never_means_a_higher_temperature():
    after = [temperature_toward(0.7, x / 100, 0.3, 0.2, 0.1, 2.0) for x in range(100)]
    assert after == sorted(after, reverse=True)


def test_the_temperature_stays_between_its_bounds():
    assert temperature_toward(1.95, 0.0, 0.3, 0.5, 0.1, 2.0) == 2.0
    assert temperature_toward(0.11, 9.0, 0.3, 0.5, 0.1, 2.0) == 0.1


@pytest.mark.parametrize("entropy", [None, math.nan, math.inf])
def test_without_a_finite_entropy_the_temperature_stays(entropy):
    assert temperature_toward(0.7, entropy, 0.3, 0.2, 0.1, 2.0) == 0.7


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: adaptive(0.0, 0.1, 4), "algorithm.kl_coef: expected more than 0 with kl_target, got 0.0"),
        (lambda: adaptive(0.1, 0.0, 4), "algorithm.kl_target: expected more than 0, got 0.0"),
        (lambda: adaptive(0.1, 0.1, 0.5), "algorithm.kl_horizon: expected at least 1, got 0.5"),
        (lambda: scheduled(0.1, 0.2, 0), "algorithm.kl_steps: expected at least 1, got 0"),
        (lambda: scheduled(0.1, 0.1, 5), "algorithm.kl_final: expected another value than the start, got 0.1"),
        (lambda: scheduled(0.1, 0.2, 5, "step"), "algorithm.kl_schedule: expected one of linear, cosine, got 'step'"),
    ],
)
def test_numbers_out_of_range_are_errors(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
