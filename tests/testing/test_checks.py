"""The contract check catches algorithms that break a law, and names the law."""

import threading
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import greedy_baseline, group_centered, group_normalized, outcome
from rlft.algorithms.base import Algorithm
from rlft.algorithms.dpo import dpo, spin
from rlft.algorithms.gdpo import gdpo
from rlft.algorithms.grpo import grpo
from rlft.algorithms.gspo import gspo
from rlft.algorithms.masking import masked, masked_mean, trajectory_mean
from rlft.algorithms.ppo import ppo
from rlft.testing import checks
from rlft.testing.checks import check_algorithm, example_batch, on_ranks


def plain_loss(logprobs, batch):
    return -batch.advantages * masked(logprobs, batch.loss_mask), {}


GOOD = Algorithm("good", outcome(group_centered), plain_loss)


def with_loss(loss, needs=()):
    return replace(GOOD, loss=loss, needs=frozenset(needs))


def with_advantages(fn):
    return replace(GOOD, advantages=fn)


def in_place(batch, reduce):
    batch.rewards.mul_(2)
    return GOOD.advantages(batch, reduce)


def uncentered_noise(totals, group_ids):
    """The textbook formula in float32, std floored: rounding errors become advantages of +-1."""
    means, stds = (torch.stack([f(totals[group_ids == group]) for group in group_ids]) for f in (torch.mean, lambda x: x.std(correction=0)))
    return (totals - means) / stds.clamp(min=1e-12)


def by_position(batch, reduce):
    """Groups inferred from a reshape: consecutive rows in fours."""
    totals = batch.rewards.sum(-1)
    centered = group_centered(totals, torch.arange(len(totals)) // 4)
    return replace(batch, advantages=masked(centered[:, None], batch.loss_mask))


def per_row(batch, reduce):
    """Each row its own trajectory."""
    centered = group_centered(batch.rewards.sum(-1), batch.group_ids)
    return replace(batch, advantages=masked(centered[:, None], batch.loss_mask))


def whitened_locally(batch, reduce):
    filled = GOOD.advantages(batch, reduce)
    return replace(filled, advantages=filled.advantages / (1 + filled.advantages.abs().sum() / filled.loss_mask.sum()))


def whitened(batch, reduce):
    filled = GOOD.advantages(batch, reduce)
    total = reduce(torch.stack([filled.advantages.abs().sum(), filled.loss_mask.sum()]))
    return replace(filled, advantages=filled.advantages / (1 + total[0] / total[1]))


def reduces_sometimes(batch, reduce):
    if len(batch.group_ids.unique()) > 1:
        reduce(torch.zeros(()))
    return GOOD.advantages(batch, reduce)


def on_the_last_column(logprobs, batch):
    """Counts tokens from the padded end."""
    t = torch.arange(logprobs.shape[1])
    return plain_loss(logprobs, batch)[0] * (logprobs.shape[1] - t), {}


def of_first_row(logprobs, batch):
    """Reads the first row as if it were special."""
    return plain_loss(logprobs, batch)[0] * (1 + batch.rewards[0].sum().abs()), {}


def of_whole_trajectories(logprobs, batch):
    """Reads log-probabilities of all of a trajectory's rows."""
    mean = trajectory_mean(logprobs, batch.loss_mask, batch.traj_ids).expand_as(logprobs)
    return masked(-batch.advantages * mean.exp(), batch.loss_mask), {}


def by_staleness(logprobs, batch):
    """Weighs a row by how far it lags behind the newest of its micro-batch."""
    lag = batch.policy_versions.max() - batch.policy_versions
    return plain_loss(logprobs, batch)[0] * (1 + lag)[:, None], {}


def of_a_lone_group_alone(batch, reduce):
    """Leaves out groups of one, but not where a rank holds nothing else."""
    filled = GOOD.advantages(batch, reduce)
    lone = (batch.group_ids[:, None] == batch.group_ids).sum(-1, keepdim=True) == 1
    return filled if lone.all() else replace(filled, loss_mask=filled.loss_mask & ~lone)


def lone_ones_against_the_batch(totals, group_ids):
    """A group of one is compared with everybody."""
    lone = (group_ids[:, None] == group_ids).sum(-1) == 1
    return torch.where(lone, group_centered(totals, torch.zeros_like(group_ids)), group_centered(totals, group_ids))


def by_a_late_stream(batch, reduce):
    """Another baseline where the learner has scored the batch."""
    filled = GOOD.advantages(batch, reduce)
    return filled if batch.old_logprobs is None else replace(filled, advantages=2 * filled.advantages)


def gradient_of_the_micro_batch(logprobs, batch):
    """The right value with a gradient that counts the micro-batch's tokens."""
    per_token = plain_loss(logprobs, batch)[0]
    return per_token.detach() + batch.loss_mask.sum() * (per_token - per_token.detach()), {}


LATE = {"needs": frozenset({"old_logprobs"}), "loss_only": frozenset({"old_logprobs"})}
BROKEN = {
    "no advantages": (with_advantages(lambda batch, reduce: replace(batch, advantages=None)), "needs: "),
    "advantages never filled": (
        replace(GOOD, advantages=lambda batch, reduce: batch, loss=lambda lp, b: (-masked(lp, b.loss_mask), {})),
        "advantages: must fill",
    ),
    "undeclared need": (with_loss(lambda lp, b: (-(lp - b.old_logprobs), {})), "needs: .*"),
    "advantages everywhere": (
        with_advantages(lambda b, reduce: replace(b, advantages=torch.ones_like(b.rewards))),
        "advantages: must be 0 off the loss mask",
    ),
    "infinite advantages": (with_advantages(outcome(lambda totals, groups: totals / 0)), "advantages: must be finite"),
    "widened mask": (with_advantages(lambda b, r: GOOD.advantages(replace(b, loss_mask=b.attention_mask), r)), "mask: .*widen"),
    "changed in place": (with_advantages(in_place), "pure: .*rewards in place"),
    "other tokens": (with_advantages(lambda b, r: replace(GOOD.advantages(b, r), token_ids=b.token_ids + 1)), "pure: .*token_ids"),
    "no baseline": (with_advantages(outcome(lambda totals, groups: totals)), "baseline: equal rewards"),
    "noise as signal": (with_advantages(outcome(uncentered_noise)), "baseline: equal rewards"),
    "scaled by the reward": (
        with_advantages(outcome(lambda totals, groups: group_centered(totals, groups) * totals)),
        "baseline: a constant",
    ),
    "lone members against the batch": (with_advantages(outcome(lone_ones_against_the_batch)), "baseline: a group's lone member"),
    "one row, one trajectory": (with_advantages(per_row), "baseline: equal rewards"),
    "groups by position": (with_advantages(by_position), "baseline: equal rewards"),
    "local statistics": (with_advantages(whitened_locally), "ranks: "),
    "a scalar": (with_loss(lambda lp, b: ((-b.advantages * lp).mean(), {})), "loss: one number per token"),
    "not finite": (with_loss(lambda lp, b: (-b.advantages * masked(lp, b.loss_mask) * torch.inf, {})), "loss: must be finite"),
    "attached metric": (with_loss(lambda lp, b: (plain_loss(lp, b)[0], {"x": lp})), "metrics: x must be detached"),
    "metric of a row": (with_loss(lambda lp, b: (plain_loss(lp, b)[0], {"x": b.rewards.sum(-1)})), "metrics: one number per token, x"),
    "mean over the micro-batch": (with_loss(lambda lp, b: (plain_loss(lp, b)[0] / b.loss_mask.sum(), {})), "split: "),
    "centred in the loss": (with_loss(lambda lp, b: (-(b.advantages - b.advantages.mean()) * masked(lp, b.loss_mask), {})), "split: "),
    "value of the micro-batch": (with_loss(lambda lp, b: (plain_loss(lp, b)[0] + b.loss_mask.sum(), {})), "split: loss and gradient"),
    "gradient of the micro-batch": (with_loss(gradient_of_the_micro_batch), "split: loss and gradient"),
    "masked too late": (
        with_loss(lambda lp, b: (-masked((lp - b.old_logprobs).exp() * b.advantages, b.loss_mask), {}), {"old_logprobs"}),
        "mask: NaN",
    ),
    "neighbouring token": (with_loss(lambda lp, b: (-b.advantages * lp.roll(1, -1), {})), "mask: tokens off the loss mask"),
    "position from the end": (with_loss(on_the_last_column), "padding: "),
    "detached": (with_loss(lambda lp, b: (-b.advantages * lp.detach(), {})), "loss: does not depend"),
    "first row": (with_loss(of_first_row), "split: "),
    "whole trajectories by rows": (with_loss(of_whole_trajectories), "split: loss and gradient"),
    "newest of the micro-batch": (with_loss(by_staleness), "split: loss and gradient"),
    "metric of the micro-batch": (
        with_loss(lambda lp, b: (plain_loss(lp, b)[0], {"lag": (b.policy_versions.max() - b.policy_versions)[:, None].expand(lp.shape)})),
        "split: metric lag",
    ),
    "nothing left": (with_advantages(lambda b, r: GOOD.advantages(replace(b, loss_mask=b.loss_mask & False), r)), "mask: .*no token"),
    "a mask by rank": (with_advantages(of_a_lone_group_alone), "ranks: loss_mask"),
    "undeclared greedy answers": (with_advantages(greedy_baseline), "needs: "),
    "undeclared parts": (replace(gdpo({"right": 1.0}), parts=()), "needs: "),
    "undeclared critic": (replace(ppo(), needs=frozenset({"old_logprobs"})), "needs: "),
    "undeclared reference": (replace(grpo(kl_coef=0.1), needs=frozenset({"old_logprobs"}), loss_only=frozenset()), "needs: "),
    "a late stream that is no need": (replace(GOOD, loss_only=frozenset({"ref_logprobs"})), "loss_only: names .*ref_logprobs"),
    "a late stream that advantages read": (replace(grpo(is_cap=2.0), loss_only=frozenset({"old_logprobs"})), "loss_only: advantages"),
    "a late stream that advantages look at": (replace(with_advantages(by_a_late_stream), **LATE), "loss_only: advantages as adv"),
    "a term beside the signal": (replace(grpo(kl_coef=0.1), signal="advantages"), "signal: where advantages are 0"),
}
NOT_BASELINES = {
    "a trajectory by rows, clipped hard": (replace(gspo(), unit="row"), "split: "),
    "a trajectory by rows": (replace(gspo(0.5, 0.5), unit="row"), "split: "),
    "a pair by rows": (replace(dpo(), unit="row"), "split: "),
    "a pair by trajectories": (replace(dpo(), unit="trajectory"), "split: "),
    "undeclared demonstrations": (replace(spin(), needs=frozenset({"ref_logprobs"})), "mask: .*is a need undeclared"),
    "a critic masked too late": (replace(ppo(), value_loss=lambda v, b: ((v - b.returns).square(), {})), "mask: NaN"),
    "a critic off by one": (replace(ppo(), value_loss=lambda v, b: ((v.roll(1, -1) - b.returns).square(), {})), "mask: tokens off"),
    "a critic's mean": (
        replace(ppo(), value_loss=lambda v, b: ((masked(v, b.loss_mask) - b.returns) * masked_mean(v, b.loss_mask), {})),
        "split: loss and gradient",
    ),
    "a critic's scalar": (replace(ppo(), value_loss=lambda v, b: (v.square().mean(), {})), "loss: one number per token"),
    "a critic's metric": (replace(ppo(), value_loss=lambda v, b: (masked(v, b.loss_mask), {"x": v})), "metrics: x must be detached"),
}


def test_a_good_algorithm_passes():
    check_algorithm(GOOD)
    check_algorithm(with_advantages(whitened))
    check_algorithm(with_advantages(outcome(lambda totals, groups: totals)), baseline=False)
    check_algorithm(replace(with_loss(of_whole_trajectories), unit="trajectory"))
    for algorithm in (ppo(), gspo(), dpo(), spin(), gdpo({"right": 1.0})):
        check_algorithm(algorithm, baseline=False)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_algorithm_is_caught_with_the_law_it_breaks(name):
    algorithm, message = BROKEN[name]
    with pytest.raises(AssertionError, match=f"^{message}"):
        check_algorithm(algorithm)


@pytest.mark.parametrize("name", NOT_BASELINES)
def test_units_critics_and_demonstrations_are_held_to_what_was_declared(name):
    algorithm, message = NOT_BASELINES[name]
    with pytest.raises(AssertionError, match=f"^{message}"):
        check_algorithm(algorithm, baseline=False)


@pytest.mark.parametrize("name", ["attention_mask", "traj_ids", "group_ids"])
def test_advantages_that_say_that_rows_are_other_rows_are_caught(name):
    def moved(batch, reduce):
        return replace(GOOD.advantages(batch, reduce), **{name: getattr(batch, name).roll(1, 0)})

    with pytest.raises(AssertionError, match=f"^pure: advantages must return {name} unchanged"):
        check_algorithm(with_advantages(moved))


@pytest.mark.parametrize("stream", ["rollout_logprobs", "old_logprobs", "ref_logprobs", "values", "entropy"])
def test_a_stream_that_is_read_off_the_mask_is_caught(stream):
    def reads(mask_of):
        def loss(logprobs, batch):
            read = mask_of(getattr(batch, stream), batch.loss_mask)
            return plain_loss(logprobs, batch)[0] * (1 + read.sum(-1, keepdim=True)), {}

        return with_loss(loss, {stream} & {"old_logprobs", "ref_logprobs", "values"})

    check_algorithm(reads(masked))
    with pytest.raises(AssertionError, match="^mask: NaN off the loss mask"):
        check_algorithm(reads(torch.mul))


@pytest.mark.parametrize("stream", ["returns", "kl_coef", "ce_weights", "is_weights", "pass_rates"])
def test_a_stream_that_depends_on_the_rank_is_caught(stream):
    def counts(batch, number):
        filled = GOOD.advantages(batch, lambda x: x)
        numbers = torch.full_like(batch.rewards, float(number))
        return replace(filled, **{stream: numbers[:, 0] if stream == "pass_rates" else masked(numbers, batch.loss_mask)})

    def locally(batch, reduce):
        return counts(batch, len(batch.group_ids.unique()))

    def over_all(batch, reduce):
        return counts(batch, reduce(torch.tensor(len(batch.group_ids.unique()))))

    check_algorithm(with_advantages(over_all))
    with pytest.raises(AssertionError, match=f"^ranks: {stream} must not depend"):
        check_algorithm(with_advantages(locally))


def test_a_trajectory_that_loses_its_reward_when_cut_into_rows_is_caught():
    def last_row_only(batch, reduce):
        """What writing instead of adding does: only a trajectory's last row counts."""
        later = torch.triu(batch.traj_ids[:, None] == batch.traj_ids, diagonal=1).any(-1)
        return GOOD.advantages(replace(batch, rewards=torch.where(later[:, None], 0.0, batch.rewards)), reduce)

    with pytest.raises(AssertionError, match="^rows: "):
        check_algorithm(with_advantages(last_row_only))


def test_advantages_that_depend_on_the_order_of_rows_are_caught():
    def first_counts_double(batch, reduce):
        """In each group, whichever trajectory stands first."""
        filled = GOOD.advantages(batch, reduce)
        leaders = torch.stack([batch.traj_ids[batch.group_ids == group][0] for group in batch.group_ids.unique()])
        return replace(filled, advantages=filled.advantages * (1 + torch.isin(batch.traj_ids, leaders).float()[:, None]))

    with pytest.raises(AssertionError, match="^order: "):
        check_algorithm(with_advantages(first_counts_double))


def test_ranks_that_reduce_unequally_are_caught_without_waiting_for_the_deadline(monkeypatch):
    with pytest.raises(AssertionError, match="^ranks: every rank must call"):
        check_algorithm(with_advantages(reduces_sometimes))
    monkeypatch.setattr(checks, "RANK_DEADLINE_S", 1.0)
    late = threading.Event()

    def second_leaves_first(share, reduce):
        if share == 0:
            late.wait()
            return reduce(torch.zeros(()))
        late.set()

    with pytest.raises(AssertionError, match="^ranks: every rank must call"):
        on_ranks(second_leaves_first, [0, 1])


def test_on_ranks_sums_over_ranks_and_passes_errors_on():
    got = on_ranks(lambda share, reduce: (float(reduce(torch.tensor(share))), float(reduce(torch.tensor(1.0)))), [1.0, 2.0, 4.0])
    assert got == [(7.0, 3.0)] * 3

    def fails_on_one(share, reduce):
        if share == 1:
            raise KeyError("broken rank")
        return reduce(torch.zeros(()))

    with pytest.raises(KeyError, match="broken rank"):
        on_ranks(fails_on_one, [0, 1])


def test_the_example_has_what_the_laws_are_about():
    batch = example_batch()
    rows, counts = torch.unique(batch.traj_ids, return_counts=True)
    assert counts.max() == 2, "a trajectory in two rows"
    assert torch.unique(batch.group_ids, return_counts=True)[1].tolist() == [5, 4, 1], "uneven groups and a lone member"
    assert batch.truncated.any() and not batch.truncated.all()
    assert (~batch.attention_mask).any() and (batch.attention_mask & ~batch.loss_mask)[:, 2:].any(), "padding, and words of the environment"
    assert batch.loss_mask.any(-1).all() and not batch.loss_mask[:, 0].any() and not (batch.loss_mask & ~batch.attention_mask).any()
    assert set(batch.policy_versions.tolist()) == {0, 1, 2}, "several policy versions, one for a trajectory"
    assert all(len(set(batch.policy_versions[batch.traj_ids == m].tolist())) == 1 for m in rows)
    again, other = example_batch(), example_batch(seed=1)
    assert torch.equal(again.token_ids, batch.token_ids) and not torch.equal(other.token_ids, batch.token_ids)


def test_a_builtin_with_one_line_wrong_is_caught():
    for estimator in (lambda t, g: group_normalized(t + 1e-3 * g, g) + g * 1e-3, lambda t, g: group_normalized(t, torch.zeros_like(g))):
        with pytest.raises(AssertionError, match="^baseline: "):
            check_algorithm(replace(grpo(), advantages=outcome(estimator)))
