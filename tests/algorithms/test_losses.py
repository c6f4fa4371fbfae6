"""Policy losses: tables, naive oracles, and what each is at ratio 1."""

import math

import pytest
import torch

from rlft.algorithms.advantages import group_centered, group_normalized
from rlft.algorithms.losses import cispo, clipped_value, dual_clip, gmpo, gspo, nft, ppo_clip
from rlft.algorithms.masking import loss_weights, masked, weighted_sum
from rlft.testing.checks import example_batch


def column(values):
    return torch.tensor([values])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "cut"),
    [
        (1.1, 2.0, -2.2, False),  # inside
        (1.5, 2.0, -2.6, True),  # a good token is likely enough: bounded at 1.3
        (0.5, 2.0, -1.0, False),  # a good token became unlikely: pull it back
        (1.1, -2.0, 2.2, False),
        (1.5, -2.0, 3.0, False),  # a bad token became likely: push it down
        (0.5, -2.0, 1.6, True),  # a bad token is unlikely enough: bounded at 0.8
    ],
)
def test_six_rows_define_the_clip(ratio, advantage, expected, cut):
    logprobs = column([math.log(ratio) - 1.0]).requires_grad_()
    loss, clipped = ppo_clip(logprobs, column([-1.0]), column([advantage]), clip_low=0.2, clip_high=0.3)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, abs=1e-6) and bool(clipped) is cut
    assert logprobs.grad.item() == pytest.approx(0.0 if cut else -ratio * advantage, abs=1e-6)


def test_at_ratio_one_the_gradient_is_reinforces():
    old = column([-0.1, -2.0, -5.0])
    advantages = column([1.0, -0.5, 0.0])
    logprobs = old.clone().requires_grad_()
    loss, clipped = ppo_clip(logprobs, old, advantages, 0.2, 0.2)
    loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages) and not clipped.any()


def test_the_loss_agrees_with_a_naive_loop():
    g = torch.Generator().manual_seed(0)
    logprobs, old, advantages = (torch.randn(5, 9, generator=g) for _ in range(3))
    loss, _ = ppo_clip(logprobs, old, advantages, 0.1, 0.4)
    for i in range(5):
        for t in range(9):
            ratio, a = math.exp(float(logprobs[i, t] - old[i, t])), float(advantages[i, t])
            assert float(loss[i, t]) == pytest.approx(-min(ratio * a, min(max(ratio, 0.9), 1.4) * a), rel=1e-5, abs=1e-6)


def test_the_clip_indicator_carries_no_gradient():
    _, clipped = ppo_clip(column([0.5]).requires_grad_(), column([0.0]), column([1.0]), 0.2, 0.2)
    assert clipped.dtype == torch.bool and not clipped.requires_grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "cut"),
    [
        (2.5, -2.0, 5.0, False),
        (4.0, -2.0, 6.0, True),  # at most 3 * 2
        (0.5, -2.0, 1.6, False),  # the clip's own cut
        (4.0, 2.0, -2.6, False),  # good tokens are not concerned
        (0.5, 2.0, -1.0, False),
        (4.0, 0.0, 0.0, False),
    ],
)
def test_a_dual_clip_bounds_the_loss_of_bad_tokens(ratio, advantage, expected, cut):
    logprobs = column([math.log(ratio) - 2.0]).requires_grad_()
    free, clipped = ppo_clip(logprobs, column([-2.0]), column([advantage]), 0.2, 0.3)
    loss, found = dual_clip(free, column([advantage]), 3.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, abs=1e-5) and bool(found) is cut
    assert (logprobs.grad.item() == 0) == (cut or bool(clipped) or advantage == 0)


def test_without_a_dual_clip_a_bad_tokens_loss_grows_with_its_ratio():
    loss, _ = ppo_clip(column([math.log(40.0)]), column([0.0]), column([-1.0]), 0.2, 0.2)
    assert loss.item() == pytest.approx(40.0)


# Trajectory 7 stands in rows 0 and 2 (three trained tokens), trajectory 5 in row 1 (one).
MASK = torch.tensor([[False, True, True], [False, True, False], [True, False, False]])
TRAJ_IDS = torch.tensor([7, 5, 7])


def streams(log_ratio, advantages):
    """logprobs with gradient, old_logprobs, advantages; log-ratios and advantages of the trained tokens, 0 elsewhere."""
    old = torch.where(MASK, -1.0, 0.0)
    logprobs, a = old.clone(), torch.zeros(3, 3)
    logprobs[MASK] += torch.tensor(log_ratio)
    a[MASK] = torch.tensor(advantages)
    return logprobs.requires_grad_(), old, a


def gradient(loss, aggregation, logprobs):
    weights = loss_weights(MASK, TRAJ_IDS, aggregation, lambda x: x)
    (out,) = torch.autograd.grad(weighted_sum(loss, weights), logprobs)
    return out


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "s", "cut"),  # of the three tokens of trajectory 7
    [
        ([0.3, -0.1, 0.1], 2.0, 0.1, False),
        ([0.3, 0.3, 0.3], 2.0, math.log(1.3), True),  # the bound
        ([0.3, 0.3, 0.3], -2.0, 0.3, False),
        ([-0.9, -0.3, 0.3], -2.0, math.log(0.8), True),
        ([-0.9, -0.3, 0.3], 2.0, -0.3, False),
    ],
)
def test_gspo_is_as_worked_by_hand(log_ratio, advantage, s, cut):
    logprobs, old, a = streams([*log_ratio[:2], 0.05, log_ratio[2]], [advantage, advantage, 1.0, advantage])
    loss, clipped = gspo(logprobs, old, a, MASK, TRAJ_IDS, 0.2, 0.3)
    want = -math.exp(s) * advantage
    assert loss[MASK].tolist() == pytest.approx([want, want, -math.exp(0.05), want])
    assert clipped[MASK].tolist() == [cut, cut, False, cut]
    got = gradient(loss, "sequence", logprobs)
    each = 0.0 if cut else want / 3 / 2  # of three tokens, of two trajectories
    assert got[MASK].tolist() == pytest.approx([each, each, -math.exp(0.05) / 2, each]) and not got[~MASK].any()


def test_gspo_per_token_has_the_same_value_and_under_sequence_aggregation_the_same_gradient():
    logprobs, old, a = streams([0.2, -0.1, 0.4, 0.05], [1.0, 1.0, -0.5, 1.0])
    (one, cut), (other, cut_too) = (gspo(logprobs, old, a, MASK, TRAJ_IDS, 0.2, 0.3, level) for level in ("sequence", "token"))
    torch.testing.assert_close(one, other)
    assert torch.equal(cut, cut_too)
    torch.testing.assert_close(gradient(one, "sequence", logprobs), gradient(other, "sequence", logprobs))


def test_gspo_per_token_gives_each_token_its_own_advantage_where_gspo_shares_them():
    logprobs, old, a = streams([0.1, 0.1, 0.0, 0.1], [1.0, 0.0, 0.0, -1.0])
    token, _ = gspo(logprobs, old, a, MASK, TRAJ_IDS, 0.2, 0.3, "token")
    sequence, _ = gspo(logprobs, old, a, MASK, TRAJ_IDS, 0.2, 0.3)
    s = math.exp(0.1)
    assert gradient(token, "token", logprobs)[MASK].tolist() == pytest.approx([-s / 4, 0, 0, s / 4])
    assert gradient(sequence, "token", logprobs)[MASK].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-8)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "bounded"),
    [(1.1, 2.0, 1.1, False), (1.5, 2.0, 1.3, True), (0.5, -2.0, 0.8, True), (1.5, -2.0, 1.3, True), (0.9, 0.0, 0.9, False)],
)
def test_cispo_weighs_the_log_probability_with_the_clipped_ratio(ratio, advantage, weight, bounded):
    logprobs = column([math.log(ratio) - 1.0]).requires_grad_()
    loss, clipped = cispo(logprobs, column([-1.0]), column([advantage]), 0.2, 0.3)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 1)) and bool(clipped) is bounded
    assert logprobs.grad.item() == pytest.approx(-weight * advantage)


def test_cispo_cuts_no_gradient_where_the_surrogate_does():
    logprobs, old, a = column([0.5]).requires_grad_(), column([0.0]), column([1.0])
    assert torch.autograd.grad(cispo(logprobs, old, a, 0.2, 0.2)[0].sum(), logprobs)[0].item() != 0
    assert torch.autograd.grad(ppo_clip(logprobs, old, a, 0.2, 0.2)[0].sum(), logprobs)[0].item() == 0


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "kept"),  # clipped to [-0.4, 0.5] on the side that the sign rewards
    [
        ([0.3, -0.2, 0.1], 2.0, [0.3, -0.2, 0.1]),
        ([0.8, -0.9, 0.1], 2.0, [0.5, -0.9, 0.1]),
        ([0.8, -0.9, 0.1], -2.0, [0.8, -0.4, 0.1]),
    ],
)
def test_gmpo_is_as_worked_by_hand(log_ratio, advantage, kept):
    logprobs, old, a = streams([*log_ratio[:2], 0.05, log_ratio[2]], [advantage, advantage, 1.0, advantage])
    loss, clipped = gmpo(logprobs, old, a, MASK, TRAJ_IDS, 0.4, 0.5)
    want = -math.exp(sum(kept) / 3) * advantage
    assert loss[MASK].tolist() == pytest.approx([want, want, -math.exp(0.05), want])
    free = [k == x for k, x in zip(kept, log_ratio, strict=True)]
    assert clipped[MASK].tolist() == [not free[0], not free[1], False, not free[2]]
    got = gradient(loss, "sequence", logprobs)[MASK].tolist()  # of each free token a third of the trajectory's half
    assert got == pytest.approx([want / 6 * free[0], want / 6 * free[1], -math.exp(0.05) / 2, want / 6 * free[2]])


def test_gmpo_summed_over_a_trajectory_is_the_papers_objective():
    g = torch.Generator().manual_seed(0)
    log_ratio = torch.randn(4, generator=g).tolist()
    for a7, a5 in ((1.5, -0.5), (-1.5, 0.5)):
        logprobs, old, a = streams(log_ratio, [a7, a7, a5, a7])
        total = weighted_sum(gmpo(logprobs, old, a, MASK, TRAJ_IDS, 0.4, 0.5)[0], loss_weights(MASK, TRAJ_IDS, "sequence", lambda x: x))

        def mean_of(ratios, advantage):  # the product of |min(r^sgn, clip(r)^sgn)|, to the power sgn / n
            sign = math.copysign(1, advantage)
            low, high = math.exp(-0.4), math.exp(0.5)
            product = math.prod(min(r**sign, min(max(r, low), high) ** sign) for r in ratios)
            return product ** (sign / len(ratios)) * advantage

        r = [math.exp(x) for x in log_ratio]
        want = -(mean_of([r[0], r[1], r[3]], a7) + mean_of([r[2]], a5)) / 2
        assert total.item() == pytest.approx(want, rel=1e-5)


SURROGATES = {
    "ppo_clip": lambda lp, old, a, mask, ids: dual_clip(ppo_clip(lp, old, a, 0.2, 0.3)[0], a, 3.0)[0],
    "gspo": lambda lp, old, a, mask, ids: gspo(lp, old, a, mask, ids, 0.2, 0.3)[0],
    "gspo token": lambda lp, old, a, mask, ids: gspo(lp, old, a, mask, ids, 0.2, 0.3, "token")[0],
    "cispo": lambda lp, old, a, mask, ids: cispo(lp, old, a, 0.2, 0.3)[0],
    "gmpo": lambda lp, old, a, mask, ids: gmpo(lp, old, a, mask, ids, 0.4, 0.4)[0],
}


def on_policy_gradient(surrogate, offset=0.0):
    batch = example_batch()
    a = torch.where(batch.loss_mask, batch.traj_ids[:, None] - 3.5, 0.0)
    logprobs = (batch.old_logprobs + offset * batch.loss_mask).requires_grad_()
    loss = surrogate(logprobs, batch.old_logprobs, a, batch.loss_mask, batch.traj_ids)
    weights = loss_weights(batch.loss_mask, batch.traj_ids, "sequence", lambda x: x)
    (got,) = torch.autograd.grad(weighted_sum(loss, weights), logprobs)
    return got, -a * weights


@pytest.mark.parametrize("name", SURROGATES)
def test_at_ratio_one_every_surrogates_gradient_is_reinforces(name):
    got, want = on_policy_gradient(SURROGATES[name])
    torch.testing.assert_close(got, want)
    assert (on_policy_gradient(SURROGATES[name], offset=0.5)[0] - want).abs().max() > 1e-3  # the control: off-policy it is not


@pytest.mark.parametrize("name", ["gspo", "gspo token", "gmpo"])
def test_a_trajectorys_loss_does_not_depend_on_how_its_tokens_stand_in_rows(name):
    log_ratio, a = [0.4, -0.3, 0.2, 0.6], [1.0, 1.0, -2.0, 1.0]
    logprobs, old, advantages = streams(log_ratio, a)
    split = SURROGATES[name](logprobs, old, advantages, MASK, TRAJ_IDS)[MASK]
    mask = torch.tensor([[True, True, True], [False, True, False]])

    def placed(x):  # the token of row 2 joins those of row 0
        out = torch.zeros(2, 3)
        out[mask] = torch.stack([x[0, 1], x[0, 2], x[2, 0], x[1, 1]])
        return out

    joined = SURROGATES[name](placed(logprobs), placed(old), placed(advantages), mask, torch.tensor([7, 5]))[mask]
    torch.testing.assert_close(split[[0, 1, 3, 2]], joined)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_agree_with_naive_loops(name):
    batch = example_batch((4, 3), seed=5)
    g = torch.Generator().manual_seed(0)
    logprobs = torch.where(batch.loss_mask, batch.old_logprobs + 0.4 * torch.randn(batch.token_ids.shape, generator=g), 0.0)
    advantages = torch.where(batch.loss_mask, torch.randn(len(batch.traj_ids), generator=g)[batch.traj_ids, None], 0.0)
    got = SURROGATES[name](logprobs, batch.old_logprobs, advantages, batch.loss_mask, batch.traj_ids)
    tokens = [(i, t) for i in range(len(batch.traj_ids)) for t in range(batch.token_ids.shape[1]) if batch.loss_mask[i, t]]
    for i, t in tokens:
        mates = [at for at in tokens if batch.traj_ids[at[0]] == batch.traj_ids[i]]
        x = {at: float(logprobs[at] - batch.old_logprobs[at]) for at in mates}
        a, r = float(advantages[i, t]), math.exp(x[i, t])
        s = math.exp(sum(x.values()) / len(mates))
        if name == "ppo_clip":
            want = max(-r * a, -min(max(r, 0.8), 1.3) * a)
            want = min(want, -3 * a) if a < 0 else want
        elif name.startswith("gspo"):
            want = max(-s * a, -min(max(s, 0.8), 1.3) * a)
        elif name == "cispo":
            want = -min(max(r, 0.8), 1.3) * a * float(logprobs[i, t])
        else:
            want = -a * math.exp(sum(min(v, 0.4) if a > 0 else max(v, -0.4) for v in x.values()) / len(mates))
        assert float(got[i, t]) == pytest.approx(want, rel=1e-4, abs=1e-6)


P = 0.25


@pytest.mark.parametrize(
    ("ratio", "right", "eps_right", "eps_wrong", "expected", "slope"),  # slope: over log R
    [
        (2.0, True, 0.0, 1.0, -math.log(2), -1.0),
        (0.5, True, 0.0, 1.0, math.log(2), -1.0),
        (0.5, True, 0.8, 1.0, -math.log(0.8), -0.5 / 0.8),  # the number is held at 0.8, the slope is R / 0.8
        (1.0, False, 0.0, 1.0, 0.0, P / (1 - P)),  # (1 - p) / (1 - p) = 1
        (0.4, False, 0.0, 1.0, -math.log(0.9 / 0.75), P * 0.4 / 0.9),  # 1 - 0.25 * 0.4 = 0.9
        (2.0, False, 0.0, 1.0, 0.0, P * 2 / 0.75),  # 0.5 / 0.75 is held at 1
        (2.0, False, 0.0, 0.5, -math.log(0.5 / 0.75), P * 2 / 0.5),
        (3.6, False, 0.0, 0.5, -math.log(0.5), P * 3.6 / 0.75 / 0.5),  # 0.1 / 0.75 is held at 0.5
        (8.0, False, 0.0, 0.5, -math.log(0.5), P * 8 / 0.75 / 0.5),  # a negative number of which no logarithm exists
    ],
)
def test_nft_is_as_worked_by_hand(ratio, right, eps_right, eps_wrong, expected, slope):
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one, ids = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    rates = torch.tensor([[P]], dtype=torch.float64)
    loss = nft(logprobs, torch.zeros_like(logprobs), one if right else ~one, rates, one, ids, "token", eps_right, eps_wrong)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected) and logprobs.grad.item() == pytest.approx(slope)


def test_nft_over_sequences_takes_the_product_of_their_ratios():
    logprobs, old, _ = streams([0.1, -0.3, 0.2, 0.5], [0.0] * 4)
    right, rates = torch.tensor([[False], [True], [False]]), torch.full((3, 1), P)
    loss = nft(logprobs, old, right, rates, MASK, TRAJ_IDS, "sequence", eps_wrong=0.1)
    wrong = -math.log((1 - P * math.exp(0.3)) / (1 - P))  # 0.1 - 0.3 + 0.5
    assert loss[MASK].tolist() == pytest.approx([wrong, wrong, -0.2, wrong])
    token = nft(logprobs, old, right, rates, MASK, TRAJ_IDS, "token", eps_wrong=0.1)
    assert token[0, 1].item() != pytest.approx(wrong)  # the control
    got = gradient(loss, "sequence", logprobs)[MASK].tolist()  # each of three tokens moves the whole, in two trajectories
    slope = P * math.exp(0.3) / (1 - P * math.exp(0.3)) / 2
    assert got == pytest.approx([slope, slope, -1 / 2, slope])


def test_nft_keeps_pass_rates_off_their_ends_and_ratios_finite():
    logprobs = torch.tensor([[3.0], [90.0], [-90.0], [90.0]], requires_grad=True)
    right = torch.tensor([[False], [False], [False], [True]])
    mask, ids = torch.ones(4, 1, dtype=torch.bool), torch.arange(4)
    loss = nft(logprobs, torch.zeros(4, 1), right, torch.tensor([[1.0], [1.0], [0.0], [0.0]]), mask, ids)
    loss.sum().backward()
    assert loss.isfinite().all() and logprobs.grad.isfinite().all()
    assert logprobs.grad[0].item() == pytest.approx(0.98 * math.exp(3) / 0.02, rel=1e-4)


@pytest.mark.parametrize(
    ("weigh", "advantage"),
    [
        (lambda p: 1 - p, group_centered),
        (lambda p: ((1 - p) / p).sqrt(), lambda totals, ids: group_normalized(totals, ids, eps=0.0)),
        (lambda p: torch.full_like(p, 1.0), lambda totals, ids: group_centered(totals, ids) / (1 - totals.mean())),
    ],
    ids=["dr_grpo", "grpo", "a positive factor a group"],
)
def test_on_policy_nft_is_the_policy_gradient_of_the_groups_advantages(weigh, advantage):
    right = torch.tensor([True, False, False, True, False])
    p = right.float().mean().expand(5, 1)
    logprobs = torch.linspace(-2, -0.1, 20).reshape(5, 4).requires_grad_()
    mask, ids = torch.ones(5, 4, dtype=torch.bool), torch.arange(5)
    loss = weigh(p) * nft(logprobs, logprobs.detach(), right[:, None], p, mask, ids)
    loss.sum().backward()
    want = -advantage(right.float(), torch.zeros(5, dtype=torch.int64))[:, None].expand(5, 4)
    torch.testing.assert_close(logprobs.grad, want)


def test_off_policy_nft_is_not_the_clipped_policy_gradient():
    right, p = torch.tensor([[True], [False]]), torch.full((2, 1), 0.5)
    logprobs = torch.full((2, 1), 0.1, requires_grad=True)
    args = (torch.ones(2, 1, dtype=torch.bool), torch.arange(2))
    (one,) = torch.autograd.grad((0.5 * nft(logprobs, torch.zeros(2, 1), right, p, *args)).sum(), logprobs)
    (other,) = torch.autograd.grad(ppo_clip(logprobs, torch.zeros(2, 1), torch.tensor([[0.5], [-0.5]]), 0.2, 0.2)[0].sum(), logprobs)
    assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize(
    ("value", "clip", "expected", "slope", "cut"),  # the old value is 1, the return 3
    [
        (1.1, 0.2, 1.9**2 / 2, -1.9, False),
        (1.5, 0.2, 1.8**2 / 2, 0.0, True),  # far enough towards the return: held at 1.2
        (0.5, 0.2, 2.5**2 / 2, -2.5, False),  # away from it: pull it back
        (1.5, None, 1.5**2 / 2, -1.5, False),
        (5.5, 0.2, 2.5**2 / 2, 2.5, False),  # beyond the return, and further than the bound: pull it back
        (3.5, 0.2, 1.8**2 / 2, 0.0, True),
    ],
)
def test_the_critics_loss_is_as_worked_by_hand(value, clip, expected, slope, cut):
    values = column([value]).requires_grad_()
    loss, clipped = clipped_value(values, column([1.0]), column([3.0]), clip)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5) and bool(clipped) is cut
    assert values.grad.item() == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("name", [*SURROGATES, "nft", "nft sequence"])
def test_no_gradient_reaches_a_token_off_the_mask(name):
    batch = example_batch()
    noise = torch.where(batch.loss_mask, batch.old_logprobs + 0.05, torch.nan).requires_grad_()
    logprobs = masked(noise, batch.loss_mask)
    if name.startswith("nft"):
        level = "sequence" if name.endswith("sequence") else "token"
        right, p = batch.traj_ids[:, None] % 2 == 0, torch.full((len(batch.traj_ids), 1), 0.5)
        loss = nft(logprobs, batch.old_logprobs, right, p, batch.loss_mask, batch.traj_ids, level)
    else:
        loss = SURROGATES[name](logprobs, batch.old_logprobs, batch.loss_mask.float(), batch.loss_mask, batch.traj_ids)
    (got,) = torch.autograd.grad(weighted_sum(loss, batch.loss_mask.float()), noise)
    assert got.isfinite().all() and not got[~batch.loss_mask].any() and got[batch.loss_mask].any()
