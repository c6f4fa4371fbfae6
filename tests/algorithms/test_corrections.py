"""Importance weights between engine and learner."""

import math

import pytest
import torch

from rlft.algorithms.corrections import importance_weights, mismatch
from rlft.errors import ConfigError
from rlft.testing.checks import example_batch

ENGINE = torch.tensor([0.5, 0.25, 0.2, 0.05], dtype=torch.float64).log()
LEARNER = torch.tensor([0.4, 0.1, 0.25, 0.25], dtype=torch.float64).log()


def per_token(old, rollout, cap):
    """Of one trajectory, all of it trained on."""
    mask = torch.ones(1, old.shape[-1], dtype=torch.bool)
    return importance_weights(old[None], rollout[None], mask, torch.zeros(1, dtype=torch.int64), cap=cap)[0]


@pytest.mark.parametrize(("ratio", "weight"), [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (2.1, 2.0), (1e30, 2.0)])
def test_the_weight_is_learner_over_engine_up_to_the_cap(ratio, weight):
    rollout = torch.tensor([-1.5])
    assert float(per_token(rollout + math.log(ratio), rollout, cap=2.0)) == pytest.approx(weight, rel=1e-5)


def test_without_truncation_an_expectation_over_the_engine_becomes_one_over_the_learner():
    value = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    weights = per_token(LEARNER, ENGINE, cap=math.inf)
    torch.testing.assert_close((ENGINE.exp() * weights * value).sum(), (LEARNER.exp() * value).sum())
    capped = per_token(LEARNER, ENGINE, cap=2.0)  # the control: 0.25 / 0.05 is cut
    assert abs(float((ENGINE.exp() * capped * value).sum() - (LEARNER.exp() * value).sum())) > 0.01


def test_mismatch_is_a_distance_in_nats_and_a_ratio_of_mean_one():
    metrics = mismatch(LEARNER, ENGINE)
    assert metrics["mismatch/abs"].tolist() == pytest.approx([abs(float(x)) for x in LEARNER - ENGINE])
    assert float((ENGINE.exp() * metrics["mismatch/ratio"]).sum()) == pytest.approx(1.0)


def test_mismatch_as_worked_by_hand():
    metrics = mismatch(torch.tensor([[0.4, 0.3]]).log(), torch.tensor([[0.2, 0.6]]).log())
    got = {name: x[0].tolist() for name, x in metrics.items()}
    assert got["mismatch/abs"] == pytest.approx([math.log(2), math.log(2)])
    assert got["mismatch/ratio"] == pytest.approx([2.0, 0.5])
    assert got["mismatch/prob"] == pytest.approx([0.2, 0.3])
    assert got["mismatch/exp_abs"] == pytest.approx([2.0, 2.0])


def test_metrics_of_mismatch_carry_no_gradient():
    old = torch.zeros(1, 2, requires_grad=True)
    assert not any(x.requires_grad for x in mismatch(old, torch.ones(1, 2)).values())


# Trajectory 7 stands in rows 0 and 2 with ratios 2, 3 and 4; trajectory 5 in row 1 with the ratio 1/2.
MASK = torch.tensor([[0, 1, 1], [0, 1, 0], [1, 0, 0]], dtype=torch.bool)
TRAJ_IDS = torch.tensor([7, 5, 7])
RATIO = torch.tensor([[9.0, 2.0, 3.0], [9.0, 0.5, 9.0], [4.0, 9.0, 9.0]])
CUBE = 24 ** (1 / 3)  # the geometric mean of 2, 3 and 4


def weights(level, mode="truncate", cap=math.inf, floor=0.0, ratio=RATIO, mask=MASK, traj_ids=TRAJ_IDS):
    rollout = torch.full(ratio.shape, -1.5)
    return importance_weights(rollout + ratio.log(), rollout, mask, traj_ids, level, mode, cap, floor)


@pytest.mark.parametrize(
    ("level", "mode", "cap", "floor", "expected"),  # of the tokens with ratio 2, 3, 1/2 and 4
    [
        ("token", "truncate", math.inf, 0.0, [2, 3, 0.5, 4]),
        ("token", "truncate", 2.5, 0.0, [2, 2.5, 0.5, 2.5]),
        ("token", "mask", 3.5, 0.0, [2, 3, 0.5, 0]),
        ("token", "mask", 3.5, 0.75, [2, 3, 0, 0]),
        ("sequence", "truncate", math.inf, 0.0, [24, 24, 0.5, 24]),
        ("sequence", "truncate", 5.0, 0.0, [5, 5, 0.5, 5]),
        ("sequence", "mask", 5.0, 0.0, [0, 0, 0.5, 0]),
        ("sequence", "mask", 30.0, 0.75, [24, 24, 0, 24]),
        ("geometric", "truncate", math.inf, 0.0, [CUBE, CUBE, 0.5, CUBE]),
        ("geometric", "truncate", 2.5, 0.0, [2.5, 2.5, 0.5, 2.5]),
        ("geometric", "mask", 2.5, 0.0, [0, 0, 0.5, 0]),
        ("geometric", "mask", 3.0, 0.75, [CUBE, CUBE, 0, CUBE]),
    ],
)
def test_weights_of_tokens_and_trajectories_are_as_worked_by_hand(level, mode, cap, floor, expected):
    got = weights(level, mode, cap, floor)
    assert got[MASK].tolist() == pytest.approx(expected) and not got[~MASK].any()


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_weights_agree_with_a_naive_loop(level, mode):
    batch, cap, floor = example_batch((4, 3, 1), seed=4), 1.6, 0.4 if mode == "mask" else 0.0
    got = importance_weights(batch.old_logprobs, batch.rollout_logprobs, batch.loss_mask, batch.traj_ids, level, mode, cap, floor)
    tokens = [(i, t) for i in range(len(batch.traj_ids)) for t in range(batch.token_ids.shape[1]) if batch.loss_mask[i, t]]
    for i, t in tokens:
        mates = [(i, t)] if level == "token" else [(j, s) for j, s in tokens if batch.traj_ids[j] == batch.traj_ids[i]]
        ratio = math.prod(math.exp(float(batch.old_logprobs[at] - batch.rollout_logprobs[at])) for at in mates)
        ratio = ratio ** (1 / len(mates)) if level == "geometric" else ratio
        want = min(ratio, cap) if mode == "truncate" else ratio if floor <= ratio <= cap else 0.0
        assert float(got[i, t]) == pytest.approx(want, rel=1e-4)


def test_unbounded_sequence_weights_turn_the_engines_trajectories_into_the_learners_and_token_weights_do_not():
    """Two tokens of two kinds, all four trajectories: the second token's distribution depends on the first."""
    g = torch.Generator().manual_seed(0)
    engine, learner = (torch.rand(3, 2, generator=g).log_softmax(-1) for _ in range(2))
    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])

    def logprobs(policy):
        return torch.stack([policy[0][pairs[:, 0]], policy[1 + pairs[:, 0], pairs[:, 1]]], dim=1)

    value = torch.tensor([1.0, -2.0, 3.0, 0.5])
    want = (logprobs(learner).sum(1).exp() * value).sum()
    far = {}
    for level in ("sequence", "token", "geometric"):
        w = importance_weights(
            logprobs(learner), logprobs(engine), torch.ones(4, 2, dtype=torch.bool), torch.arange(4), level, cap=math.inf
        )
        far[level] = abs(float((logprobs(engine).sum(1).exp() * value * w[:, 0]).sum() - want))
    assert far["sequence"] < 1e-6 and far["token"] > 1e-3 and far["geometric"] > 1e-3


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_at_equal_probabilities_all_weights_are_exactly_one(level):
    got = weights(level, "mask", cap=1.0, floor=1.0, ratio=torch.ones(3, 3))
    assert (got == MASK.float()).all()


@pytest.mark.parametrize("level", ["sequence", "token", "geometric"])
@pytest.mark.parametrize("sign", [1, -1])
def test_long_trajectories_far_apart_have_finite_weights(level, sign):
    old, rollout = torch.zeros(1, 5000), torch.full((1, 5000), -90.0 * sign)
    mask = torch.ones(1, 5000, dtype=torch.bool)
    got = importance_weights(old, rollout, mask, torch.zeros(1, dtype=torch.int64), level, cap=math.inf)
    assert got.isfinite().all() and (got > 0).all()
    assert not (old - rollout).sum().abs().exp().isfinite()  # the control: the plain product


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_weights_do_not_depend_on_row_order_padding_or_what_stands_off_the_mask(level):
    turned = weights(level, ratio=RATIO.flip(0), mask=MASK.flip(0), traj_ids=TRAJ_IDS.flip(0))
    assert torch.equal(turned.flip(0), weights(level))
    wide = weights(level, ratio=torch.nn.functional.pad(RATIO, (0, 4), value=5.0), mask=torch.nn.functional.pad(MASK, (0, 4)))
    assert torch.equal(wide[:, :3], weights(level)) and not wide[:, 3:].any()
    holes = weights(level, ratio=torch.where(MASK, RATIO, torch.nan))
    assert torch.equal(holes, weights(level))


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_weights_of_every_level_carry_no_gradient(level):
    old = torch.zeros(3, 3, requires_grad=True)
    assert not importance_weights(old, torch.ones(3, 3), MASK, TRAJ_IDS, level).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "turn"}, "algorithm.is_level: expected 'token', 'sequence' or 'geometric', got 'turn'"),
        ({"level": "token", "mode": "cut"}, "algorithm.is_mode: expected 'truncate' or 'mask', got 'cut'"),
        ({"level": "token", "floor": 0.5}, "algorithm.is_floor needs is_mode = 'mask'"),
    ],
)
def test_wrong_options_of_the_weights_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        weights(**options)
