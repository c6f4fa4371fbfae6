"""Group baselines: tables, an oracle, and exactness where floats tempt to noise."""

import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import group_centered, group_mean, group_normalized, outcome, outcomes
from rlft.testing.checks import example_batch

ESTIMATORS = [group_centered, group_normalized]


def test_groups_are_centered_and_normalized_as_worked_by_hand():
    totals = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 2.0, 8.0])
    group_ids = torch.tensor([3, 3, 3, 3, 9, 0, 0])  # ids need not be dense or in order
    assert group_mean(totals, group_ids).tolist() == [0.5, 0.5, 0.5, 0.5, 5.0, 5.0, 5.0]
    assert group_centered(totals, group_ids).tolist() == [0.5, -0.5, -0.5, 0.5, 0.0, -3.0, 3.0]
    torch.testing.assert_close(group_normalized(totals, group_ids, eps=0.5), torch.tensor([0.5, -0.5, -0.5, 0.5, 0, -6 / 7, 6 / 7]))


def test_groups_agree_with_the_statistics_module():
    g = torch.Generator().manual_seed(3)
    totals, group_ids = torch.randn(40, generator=g), torch.randint(0, 7, (40,), generator=g)
    centered, normalized = group_centered(totals, group_ids), group_normalized(totals, group_ids)
    for i in range(40):
        members = [float(r) for r, group in zip(totals, group_ids, strict=True) if group == group_ids[i]]
        distance = float(totals[i]) - statistics.fmean(members)
        assert float(centered[i]) == pytest.approx(distance, abs=1e-6)
        assert float(normalized[i]) == pytest.approx(distance / (statistics.pstdev(members) + 1e-6), abs=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -0.7, 1e6 + 0.1, 0.0])
@pytest.mark.parametrize("size", [1, 3, 6, 7, 11])
def test_equal_rewards_and_lone_members_get_exactly_zero(estimator, dtype, reward, size):
    totals = torch.tensor([reward] * size + [0.0, 1.0], dtype=dtype)
    advantages = estimator(totals, torch.tensor([0] * size + [1, 1]))
    assert advantages[:size].tolist() == [0.0] * size and advantages.dtype == dtype


def test_a_plain_mean_would_leave_noise_that_normalising_turns_into_advantages():
    x = torch.tensor([0.1] * 3, dtype=torch.float64)
    residue = x - (x[0] + x[1] + x[2]) / 3
    assert residue.any() and not group_centered(x, torch.zeros(3, dtype=torch.int64)).any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_constant_added_to_all_rewards_changes_nothing(estimator):
    totals, group_ids = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.5]), torch.tensor([0, 0, 0, 1, 1])
    for constant in (-3.0, 1e5):
        torch.testing.assert_close(estimator(totals + constant, group_ids), estimator(totals, group_ids), rtol=0, atol=1e-6)


def test_close_rewards_still_normalise_even_beside_a_large_offset():
    close = torch.tensor([0.5, 0.5001, 0.5002, 0.5001], dtype=torch.float64)
    group_ids = torch.zeros(4, dtype=torch.int64)
    for offset in (0.0, 1e6):
        out = group_normalized(close + offset, group_ids)
        assert float(out.square().mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_order_of_trajectories_does_not_matter(estimator):
    g = torch.Generator().manual_seed(0)
    totals, group_ids = torch.randn(12, generator=g), torch.arange(12) % 4
    order = torch.randperm(12, generator=g)
    torch.testing.assert_close(estimator(totals[order], group_ids[order]), estimator(totals, group_ids)[order])


def test_a_trajectory_earns_the_rewards_of_all_its_rows():
    batch = example_batch((3, 2))  # trajectory 0 has rows 0 and 1
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([0.5, 0.25, 1.0, -1.0, 2.0, 4.0])
    rewards[0, 4] = 1.0
    totals, group_ids = outcomes(replace(batch, rewards=rewards))
    assert totals.tolist() == [1.75, 1.0, -1.0, 2.0, 4.0] and group_ids.tolist() == [0, 0, 0, 1, 1]


def test_outcomes_follow_the_trajectory_ids_wherever_the_rows_stand():
    batch = example_batch((2, 2))
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    moved = replace(batch, rewards=rewards, traj_ids=torch.tensor([8, 2, 8, 5]), group_ids=torch.tensor([6, 1, 6, 1]))
    totals, group_ids = outcomes(moved)
    assert totals.tolist() == [2.0, 4.0, 4.0] and group_ids.tolist() == [1, 1, 6]


def test_totals_that_were_added_up_differently_are_equal():
    batch = example_batch((2,))
    rewards = torch.zeros_like(batch.rewards)
    rewards[0, 2:5] = 0.1
    rewards[1, 4] = 0.3
    totals, _ = outcomes(replace(batch, rewards=rewards))
    assert totals[0] == totals[1]


def test_every_trained_token_gets_its_trajectorys_advantage_and_no_other_token_any():
    batch = example_batch()
    filled = outcome(lambda totals, group_ids: torch.arange(1.0, len(totals) + 1))(batch, lambda x: x)
    expected = torch.where(batch.loss_mask, batch.traj_ids[:, None] + 1.0, 0.0)
    assert filled.advantages is not None and filled.advantages.tolist() == expected.tolist()
