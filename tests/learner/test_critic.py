"""How much of the returns' variance the critic explains: by hand, off the mask, and over ranks."""

import pytest
import torch

from rlft.learner.critic import explained_variance
from rlft.testing.checks import on_ranks


def alone(x):
    return x


def column(*numbers):
    return torch.tensor([numbers])


@pytest.mark.parametrize(
    ("values", "explained"),  # of the returns 1, 2, 3, whose squares around the mean sum up to 2
    [
        ((1.0, 2.0, 3.0), 1.0),
        ((6.0, 7.0, 8.0), 1.0),  # a constant error has no variance
        ((4.0, 4.0, 4.0), 0.0),
        ((1.0, 2.0, 2.0), 2 / 3),  # errors 0, 0, 1: 1 - 3 (1/3)^2 = 2/3, and 1 - (2/3) / 2
        ((1.0, 2.0, 5.0), -1 / 3),  # errors 0, 0, -2: 4 - 3 (2/3)^2 = 8/3, and 1 - (8/3) / 2
        ((3.0, 2.0, 1.0), -3.0),  # errors -2, 0, 2: worse than a constant
    ],
)
def test_what_is_explained_is_as_worked_by_hand(values, explained):
    returns = column(1.0, 2.0, 3.0)
    assert explained_variance(returns, column(*values), torch.ones(1, 3, dtype=torch.bool), alone) == pytest.approx(explained)


@pytest.mark.parametrize("off", [0.0, 100.0, torch.nan, torch.inf])
def test_tokens_off_the_mask_do_not_count(off):
    mask = torch.tensor([[True, False, True], [False, True, False]])
    returns = torch.tensor([[1.0, off, 2.0], [off, 3.0, off]])
    values = torch.tensor([[1.0, -off, 2.0], [off, 2.0, 1.0]])
    assert explained_variance(returns, values, mask, alone) == pytest.approx(2 / 3)
    if off == 100.0:  # the control: on the mask they would
        assert abs(explained_variance(returns, values, torch.ones_like(mask), alone) - 2 / 3) > 0.1


@pytest.mark.parametrize("reward", [0.0, 0.1, 1000.1])
def test_where_all_returns_are_equal_nothing_is_to_explain(reward):
    returns, values = torch.full((3, 7), reward), torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 7, dtype=torch.bool)
    assert explained_variance(returns, values, mask, alone) == 0.0
    assert explained_variance(returns, values, ~mask, alone) == 0.0
    returns[0, 0] += 1.0  # the control
    assert explained_variance(returns, values, mask, alone) != 0.0


def shares():
    """Returns, values and mask of three ranks, of other means and sizes; the last trains no token."""
    g = torch.Generator().manual_seed(1)
    made = []
    for rows, mean in ((4, 0.0), (2, 3.0), (1, 50.0)):
        returns = mean + torch.randn(rows, 5, generator=g)
        mask = torch.rand(rows, 5, generator=g) < 0.7 if mean < 50 else torch.zeros(rows, 5, dtype=torch.bool)
        made.append((returns, 0.5 * returns + 0.3 * torch.randn(rows, 5, generator=g), mask))
    return made


def test_every_rank_gets_the_number_of_all_ranks_tokens():
    parts = shares()
    whole = explained_variance(*(torch.cat(streams) for streams in zip(*parts, strict=True)), alone)
    got = on_ranks(lambda share, reduce: explained_variance(*share, reduce), parts)
    assert got == [pytest.approx(whole)] * 3 and len(set(got)) == 1 and 0.3 < whole < 0.9
    assert all(abs(explained_variance(*share, alone) - whole) > 0.01 for share in parts)  # the control: on its own each has another
