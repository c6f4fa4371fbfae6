"""GDPO: a table, a naive oracle, and the laws, which speak of parts where others speak of rewards."""

import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.gdpo import gdpo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch

WEIGHTS = {"right": 1.0, "brief": 0.5}


def with_parts(batch, parts):
    return replace(batch, parts=torch.tensor(parts)[batch.traj_ids])


@pytest.mark.parametrize("options", [{}, {"kl_coef": 0.1}, {"overlong": "filter", "is_cap": 2.0}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(gdpo(WEIGHTS, **options), baseline=False)


def test_advantages_as_worked_by_hand():
    batch = with_parts(example_batch((2, 2)), [[1.0, 0.0], [0.0, 8.0], [0.0, 3.0], [0.0, 3.0]])
    got = gdpo(WEIGHTS).advantages(batch, lambda x: x).advantages
    # The first group's parts are 1, -1 and -1, 1: 1 - 0.5 and -1 + 0.5. The second's are equal: 0.
    n = batch.loss_mask.sum(-1)
    scaled = float((n.sum() / n[:2].sum()).sqrt())  # 0.5 over the std about 0
    expected = torch.tensor([scaled, -scaled, 0, 0])[:, None].expand_as(got)
    torch.testing.assert_close(got, torch.where(batch.loss_mask, expected, 0.0), rtol=0, atol=1e-4)


def test_a_step_agrees_with_a_naive_oracle():
    batch = example_batch((4, 3, 1, 5), seed=6)
    parts = torch.randn(13, 2, generator=torch.Generator().manual_seed(1)).tolist()
    filled = gdpo(WEIGHTS).advantages(with_parts(batch, parts), lambda x: x)
    group = dict(zip(batch.traj_ids.tolist(), batch.group_ids.tolist(), strict=True))
    raw = {}
    for m in group:
        raw[m] = 0.0
        for p, weight in enumerate(WEIGHTS.values()):
            members = [parts[n][p] for n in group if group[n] == group[m]]
            raw[m] += weight * (parts[m][p] - statistics.fmean(members)) / (statistics.pstdev(members) + 1e-6)
    tokens = [raw[int(batch.traj_ids[b])] for b, _ in batch.loss_mask.nonzero().tolist()]
    scale = statistics.fmean(x * x for x in tokens) ** 0.5 + 1e-6
    assert filled.advantages[batch.loss_mask].tolist() == pytest.approx([x / scale for x in tokens], abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1])
def test_equal_parts_and_lone_members_get_exactly_zero(value):
    batch = example_batch((3, 1))
    assert not gdpo(WEIGHTS).advantages(with_parts(batch, [[value, 1.0]] * 4), lambda x: x).advantages.any()
    filled = gdpo(WEIGHTS).advantages(with_parts(batch, [[value, 1.0], [2.0, 3.0], [value, 1.0], [5.0, 5.0]]), lambda x: x)
    assert filled.advantages[:-1].any() and not filled.advantages[-1].any()


def test_a_constant_added_to_a_part_and_a_parts_scale_change_nothing():
    batch = example_batch((4, 3))
    parts = torch.randint(-8, 9, (7, 2), generator=torch.Generator().manual_seed(2)) / 8
    plain = gdpo(WEIGHTS).advantages(with_parts(batch, parts.tolist()), lambda x: x).advantages
    moved = gdpo(WEIGHTS).advantages(with_parts(batch, (parts * torch.tensor([64.0, 1]) + 8).tolist()), lambda x: x).advantages
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-4)
    other = gdpo({"right": 1.0, "brief": 2.0}).advantages(with_parts(batch, parts.tolist()), lambda x: x).advantages
    assert not torch.allclose(other, plain, atol=1e-2)  # the control: a weight is no scale


def test_the_parts_it_reads_are_those_it_weighs_in_their_order():
    assert gdpo({"b": 1, "a": 2}).parts == ("b", "a")
    batch = example_batch((2,))
    swapped = gdpo({"b": 1.0, "a": -1.0}).advantages(with_parts(batch, [[1.0, 0.0], [0.0, 0.0]]), lambda x: x).advantages
    assert (swapped[0][batch.loss_mask[0]] > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "algorithm.weights: expected a table of reward parts and their weights, got {}"),
        ({"weights": {"right": 0.0}}, "algorithm.weights.right: expected a number other than 0, got 0.0"),
        ({"weights": {"right": "1"}}, "algorithm.weights.right: expected a number other than 0, got '1'"),
        ({"weights": WEIGHTS, "kl_coef": 0.1, "kl_in": "reward"}, "algorithm.kl_in: expected 'loss'"),
    ],
)
def test_an_option_that_is_wrong_or_does_not_apply_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        gdpo(**options)
    assert str(error.value).startswith(message)
