"""Shares of a step's loss: worked by hand, summed over ranks, and safe where nothing is trained."""

import pytest
import torch

from rlft.algorithms.masking import loss_weights, masked, masked_mean, trajectory_mean, trajectory_sum, weighted_sum
from rlft.errors import ConfigError
from rlft.testing.checks import example_batch, on_ranks

AGGREGATIONS = [("token", None), ("sequence", None), ("constant", 10)]


def identity(x):
    return x


# Trajectory 7 has three trained tokens over two rows, trajectory 2 one, trajectory 5 none.
MASK = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
TRAJ_IDS = torch.tensor([7, 2, 7, 5])


@pytest.mark.parametrize(
    ("aggregation", "max_length", "share"),
    [
        ("token", None, [[0, 1 / 4, 1 / 4], [0, 1 / 4, 0], [0, 0, 1 / 4], [0, 0, 0]]),
        ("sequence", None, [[0, 1 / 6, 1 / 6], [0, 1 / 2, 0], [0, 0, 1 / 6], [0, 0, 0]]),
        ("constant", 10, [[0, 1 / 20, 1 / 20], [0, 1 / 20, 0], [0, 0, 1 / 20], [0, 0, 0]]),
    ],
)
def test_shares_are_as_worked_by_hand(aggregation, max_length, share):
    weights = loss_weights(MASK, TRAJ_IDS, aggregation, identity, max_length)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor(share))


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_shares_do_not_depend_on_which_rank_holds_a_trajectory(aggregation, max_length):
    batch = example_batch((3, 2, 4))
    whole = loss_weights(batch.loss_mask, batch.traj_ids, aggregation, identity, max_length)
    held = [batch.traj_ids < 2, batch.traj_ids >= 2, batch.traj_ids > 99]  # the third rank has no row
    parts = on_ranks(
        lambda rows, reduce: loss_weights(batch.loss_mask[rows], batch.traj_ids[rows], aggregation, reduce, max_length), held
    )
    for rows, part in zip(held, parts, strict=True):
        torch.testing.assert_close(part, whole[rows])


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_a_step_without_a_trained_token_has_shares_of_zero(aggregation, max_length):
    weights = loss_weights(torch.zeros_like(MASK), TRAJ_IDS, aggregation, identity, max_length)
    assert weights.tolist() == torch.zeros(MASK.shape).tolist()


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_a_rank_without_a_trained_token_still_counts_the_others(aggregation, max_length):
    none = torch.zeros_like(MASK)
    parts = on_ranks(lambda mask, reduce: loss_weights(mask, TRAJ_IDS, aggregation, reduce, max_length), [MASK, none])
    torch.testing.assert_close(parts[0], loss_weights(MASK, TRAJ_IDS, aggregation, identity, max_length))
    assert not parts[1].any()


def test_constant_aggregation_without_a_length_says_what_to_set():
    with pytest.raises(ConfigError, match="rollout.max_tokens"):
        loss_weights(MASK, TRAJ_IDS, "constant", identity)


def test_an_unknown_aggregation_is_an_error():
    with pytest.raises(ConfigError, match="'tokens'"):
        loss_weights(MASK, TRAJ_IDS, "tokens", identity)  # pyright: ignore


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_cutting_into_micro_batches_leaves_the_sum_as_it_is(aggregation, max_length):
    batch = example_batch()
    weights = loss_weights(batch.loss_mask, batch.traj_ids, aggregation, identity, max_length)
    per_token = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    whole = weighted_sum(per_token, weights)
    cut = [weighted_sum(per_token[rows], weights[rows]) for rows in ([0], [5, 2], [1, 3, 4, 6, 7, 8, 9])]
    torch.testing.assert_close(sum(cut), whole)
    # The control: means of micro-batches, averaged, are another number.
    means = [masked_mean(per_token[rows], batch.loss_mask[rows]) for rows in ([0], [5, 2], [1, 3, 4, 6, 7, 8, 9])]
    assert abs(float(sum(means) / 3 - whole)) > 1e-3


def test_a_nan_of_weight_zero_is_left_out_of_the_sum_and_of_its_gradient():
    per_token = torch.tensor([[1.0, torch.nan, 3.0]], requires_grad=True)
    weights = torch.tensor([[0.5, 0.0, 0.25]])
    total = weighted_sum(per_token, weights)
    total.backward()
    assert total.item() == 1.25 and per_token.grad.tolist() == [[0.5, 0.0, 0.25]]
    assert (per_token * weights).sum().isnan()  # the control: multiplication keeps it


def test_a_nan_of_some_weight_is_not_hidden():
    assert weighted_sum(torch.tensor([[torch.nan]]), torch.tensor([[0.1]])).isnan()


def test_masked_mean_is_over_the_mask_and_zero_without_one():
    x = torch.tensor([[1.0, torch.nan, 4.0]])
    assert masked_mean(x, torch.tensor([[True, False, True]])).item() == 2.5
    assert masked_mean(x, torch.zeros(1, 3, dtype=torch.bool)).item() == 0.0


def test_masking_before_an_exp_keeps_nan_out_of_the_gradient():
    mask = torch.tensor([[True, False]])
    x = torch.tensor([[0.0, torch.nan]], requires_grad=True)
    masked(x, mask).exp().sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0]]
    y = torch.tensor([[0.0, torch.nan]], requires_grad=True)
    torch.where(mask, y.exp(), 0.0).sum().backward()  # the control: masked too late
    assert y.grad[0, 1].isnan()


def test_a_stream_that_nobody_filled_is_a_clear_error():
    with pytest.raises(ValueError, match="Algorithm.needs"):
        masked(None, MASK)


def test_sums_and_means_of_trajectories_are_as_worked_by_hand():
    x = torch.tensor([[9.0, 1.0, 2.0], [9.0, 5.0, 9.0], [9.0, 9.0, 6.0], [9.0, 9.0, 9.0]])
    total, mean = trajectory_sum(x, MASK, TRAJ_IDS), trajectory_mean(x, MASK, TRAJ_IDS)
    assert total.tolist() == [[9.0], [5.0], [9.0], [0.0]]  # 1 + 2 + 6 over rows 0 and 2; nothing is trained in row 3
    assert mean.tolist() == [[3.0], [5.0], [3.0], [0.0]] and mean.dtype == x.dtype


def test_means_of_trajectories_are_not_means_of_their_rows():
    x = torch.tensor([[0.0, 1.0, 2.0], [0.0, 5.0, 0.0], [0.0, 0.0, 6.0], [0.0, 0.0, 0.0]])
    rows = torch.stack([masked_mean(x[i], MASK[i]) for i in (0, 2)])
    assert trajectory_mean(x, MASK, TRAJ_IDS)[0] == 3.0 != rows.mean()


def test_the_gradient_of_a_trajectorys_mean_reaches_its_trained_tokens_alone():
    x = torch.tensor([[torch.nan, 1.0, 2.0], [torch.nan, 5.0, 9.0], [9.0, 9.0, 6.0], [9.0, 9.0, 9.0]], requires_grad=True)
    trajectory_mean(x, MASK, TRAJ_IDS)[0].sum().backward()
    third = 1 / 3
    assert x.grad.flatten().tolist() == pytest.approx([0, third, third, 0, 0, 0, 0, 0, third, 0, 0, 0])
