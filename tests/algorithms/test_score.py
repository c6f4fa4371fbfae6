"""SCoRe: who earns what, worked by hand; a naive oracle of both stages; and what no attempt may be paid for."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import leave_one_out, outcome
from rlft.algorithms.score import score
from rlft.algorithms.turns import compare, on_turns, rewards_to_go, same_turn, turns_of
from rlft.errors import ConfigError
from rlft.learner.batching import collate
from rlft.learner.rows import to_rows
from rlft.testing.checks import check_algorithm, example_batch
from rlft.types import Completion, Source, Task, Trajectory, Turn

P, E, S, H = Source.PROMPT, Source.ENVIRONMENT, Source.POLICY, Source.HINT
OPTIONS = [
    {"stage": 1},
    {"stage": 1, "kl_coef": 0.5, "kl_turns": [3.0, 0.0], "baseline": "mean"},
    {"stage": 2},
    {"stage": 2, "alpha": 1.5, "discount": 0.5, "kl_coef": 0.0},
    {"stage": 2, "alpha": 0.0, "baseline": "mean", "kl_turns": [2.0, 1.0], "clip_low": 0.1, "clip_high": 0.4},
]


def attempts(*rewards, index=0, group="g", given=False):
    """A conversation of two-token attempts with these rewards, one token of the environment's before each."""
    context, sources, turns = [], [], []
    for k, reward in enumerate(rewards):
        said = [10 + k, 20 + index]
        context, sources = [*context, 1], [*sources, E if turns else P]
        written = [H, H] if given and not turns else [S, S]
        completion = Completion(said, [-0.5, -0.5], "stop", 0)
        turns.append(Turn(context, completion, {"role": "assistant"}, [*sources, *written], reward, "attempt"))
        context, sources = [*context, *said], [*sources, *written]
    return Trajectory(Task("t", ()), index, tuple(turns), "completed", group)


def batch_of(*trajectories):
    batch = collate([row for trajectory in trajectories for row in to_rows(trajectory)], pad_id=0)
    zeros = torch.zeros_like(batch.rewards)
    return replace(batch, old_logprobs=zeros, ref_logprobs=zeros)


def per_attempt(batch, algorithm):
    """The advantage of every attempt, None where none of its tokens is trained. All tokens of an attempt agree."""
    filled = algorithm.advantages(batch, lambda x: x)
    out = []
    for b in range(len(batch.token_ids)):
        row = []
        for k in range(int(batch.turn_ids.max()) + 1):
            values = set(filled.advantages[b][filled.loss_mask[b] & (batch.turn_ids[b] == k)].tolist())
            assert len(values) <= 1
            row.append(next(iter(values), None))
        out.append(row)
    return out


GROUP = [attempts(1.0, 1.0), attempts(0.0, 1.0, index=1), attempts(0.0, 0.0, index=2), attempts(1.0, 0.0, index=3)]


def test_stage_one_pays_the_second_attempt_alone_as_worked_by_hand():
    # Second attempts earn 1, 1, 0, 0: each less the mean of the three others.
    assert per_attempt(batch_of(*GROUP), score(stage=1)) == [[0.0, pytest.approx(a)] for a in (2 / 3, 2 / 3, -2 / 3, -2 / 3)]
    assert per_attempt(batch_of(*GROUP), score(stage=1, baseline="mean")) == [[0.0, a] for a in (0.5, 0.5, -0.5, -0.5)]


def test_stage_two_pays_the_first_for_itself_and_the_second_with_the_bonus_as_worked_by_hand():
    # First attempts earn 1, 0, 0, 1; mean 1/2. Second: 1, 1 + 2, 0, 0 - 2; mean 1/2.
    table = [[0.5, 0.5], [-0.5, 2.5], [-0.5, -0.5], [0.5, -2.5]]
    assert per_attempt(batch_of(*GROUP), score(stage=2, alpha=2.0, baseline="mean")) == table
    # With half of the second attempt's reward: 1.5, 0.5, 0, 1; mean 3/4. The second earns what it did.
    shared = [[0.75, 0.5], [-0.25, 2.5], [-0.75, -0.5], [0.25, -2.5]]
    assert per_attempt(batch_of(*GROUP), score(stage=2, alpha=2.0, baseline="mean", discount=0.5)) == shared


def test_the_bonus_is_ten_times_the_improvement_where_nothing_is_said():
    assert per_attempt(batch_of(*GROUP), score(stage=2)) == per_attempt(batch_of(*GROUP), score(stage=2, alpha=10.0))
    assert per_attempt(batch_of(*GROUP), score(stage=2)) != per_attempt(batch_of(*GROUP), score(stage=2, alpha=9.0))


def test_every_later_attempt_is_compared_with_the_one_before():
    # Third attempts earn 1 + 2 * (1 - 0) = 3 and 1 + 2 * (1 - 1) = 1; mean 2.
    three = batch_of(attempts(1.0, 0.0, 1.0), attempts(1.0, 1.0, 1.0, index=1))
    assert per_attempt(three, score(stage=2, alpha=2.0, baseline="mean")) == [[0.0, -1.5, 1.0], [0.0, 1.5, -1.0]]
    # In stage 1 each earns its own alone: 0 and 1, then 1 and 0.
    three = batch_of(attempts(1.0, 0.0, 1.0), attempts(1.0, 1.0, 0.0, index=1))
    assert per_attempt(three, score(stage=1, baseline="mean")) == [[0.0, -0.5, 0.5], [0.0, 0.5, -0.5]]


def to_go_over_both(alpha):
    """The variant that lets the bonus flow back: rewards to go of r_1 and r_2 + alpha * (r_2 - r_1)."""

    def advantages(batch, reduce):
        turns = turns_of(batch)
        shaped = turns.rewards.clone()
        shaped[:, 1] += alpha * (turns.rewards[:, 1] - turns.rewards[:, 0])
        return replace(batch, advantages=on_turns(batch, compare(leave_one_out, rewards_to_go(shaped), same_turn(turns))))

    return replace(score(stage=2), advantages=advantages)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 10.0])
@pytest.mark.parametrize("discount", [None, 1.0])
def test_a_wrong_first_attempt_is_never_paid_for_what_the_second_makes_of_it(alpha, discount):
    mended, kept = attempts(0.0, 1.0), attempts(1.0, 1.0, index=1)
    (wrong_first, mending), (right_first, keeping) = per_attempt(batch_of(mended, kept), score(stage=2, alpha=alpha, discount=discount))
    assert wrong_first < 0 < right_first and mending > 0 > keeping
    (paid, _), (blamed, _) = per_attempt(batch_of(mended, kept), to_go_over_both(alpha))
    assert paid > 0 > blamed  # the control: with rewards to go the wrong first attempt is the better one


def test_nothing_about_the_second_attempt_reaches_the_first_ones_tokens():
    for stage in (1, 2):
        before = per_attempt(batch_of(*GROUP), score(stage=stage))
        other = [attempts(t.turns[0].reward, 1 - t.turns[1].reward, index=t.index) for t in GROUP]
        assert [first for first, _ in per_attempt(batch_of(*other), score(stage=stage))] == [first for first, _ in before]
        assert [second for _, second in per_attempt(batch_of(*other), score(stage=stage))] != [second for _, second in before]


def test_a_given_first_attempt_enters_the_bonus_and_trains_only_the_second():
    batch = batch_of(attempts(1.0, 1.0, given=True), attempts(1.0, 0.0, index=1, given=True), attempts(1.0, 0.5, index=2))
    # Second attempts earn 1, 0 - 2, 0.5 - 1; the mean is -1/2.
    assert per_attempt(batch, score(stage=2, alpha=2.0, baseline="mean")) == [[None, 1.5], [None, -1.5], [0.0, 0.0]]
    assert per_attempt(batch, score(stage=1, baseline="mean")) == [[None, 0.5], [None, -0.5], [0.0, 0.0]]


def test_a_trajectory_that_ended_after_its_first_attempt_is_compared_there_only():
    batch = batch_of(attempts(1.0, 1.0), attempts(0.0, 1.0, index=1), attempts(0.5, index=2))
    assert per_attempt(batch, score(stage=2, alpha=1.0, baseline="mean")) == [[0.5, -0.5], [-0.5, 0.5], [0.0, None]]
    assert per_attempt(batch_of(attempts(1.0), attempts(0.0, index=1)), score(stage=1)) == [[0.0], [0.0]]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_equal_attempts_give_exactly_zero_and_a_constant_on_an_attempt_changes_nothing(stage, baseline):
    algorithm = score(stage=stage, baseline=baseline)
    equal = [attempts(0.1, 0.3, index=i) for i in range(3)]
    assert per_attempt(batch_of(*equal), algorithm) == [[0.0, 0.0]] * 3
    moved = [attempts(t.turns[0].reward + 8.0, t.turns[1].reward - 4.0, index=t.index) for t in GROUP]
    for got, want in zip(per_attempt(batch_of(*moved), algorithm), per_attempt(batch_of(*GROUP), algorithm), strict=True):
        assert got == pytest.approx(want, abs=1e-5)


def oracle(batch, new, stage, alpha=10.0, discount=0.0, baseline="leave_one_out", kl_coef=0.01, kl_turns=None, clip_low=0.2, clip_high=0.2):
    """The loss of every token again, with loops over turns found by walking the rows."""
    B, T = batch.token_ids.shape
    kl_turns = kl_turns or ([10.0, 1.0] if stage == 1 else [1.0, 1.0])
    earned, wrote, group = {}, set(), {}
    for b in range(B):
        m, turn = int(batch.traj_ids[b]), 0
        group[m] = int(batch.group_ids[b])
        for t in range(T):
            if batch.turn_ids[b, t] >= 0:
                turn = int(batch.turn_ids[b, t])
                wrote.add((m, turn))
            earned[m, turn] = earned.get((m, turn), 0.0) + float(batch.rewards[b, t])

    def pays(m, k):
        r1, r2 = earned.get((m, 0), 0.0), earned.get((m, 1), 0.0)
        if stage == 1:
            return r2
        return r1 + discount * r2 if k == 0 else r2 + alpha * (r2 - r1)

    def advantage(m, k):
        if stage == 1 and k == 0:
            return 0.0
        others = [n for n, j in wrote if j == k and group[n] == group[m] and (baseline == "mean" or n != m)]
        return pays(m, k) - statistics.fmean(pays(n, k) for n in others) if others else 0.0

    out = torch.zeros(B, T)
    for b in range(B):
        for t in range(T):
            if not batch.loss_mask[b, t]:
                continue
            k = int(batch.turn_ids[b, t])
            a = advantage(int(batch.traj_ids[b]), k)
            ratio = math.exp(float(new[b, t] - batch.old_logprobs[b, t]))
            held = kl_coef * kl_turns[min(k, 1)] * float(new[b, t] - batch.ref_logprobs[b, t]) ** 2 / 2
            out[b, t] = -min(ratio * a, min(max(ratio, 1 - clip_low), 1 + clip_high) * a) + held
    return out


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", [0, 4])
def test_a_step_agrees_with_a_naive_oracle(options, seed):
    batch = example_batch((4, 3, 1, 5), seed=seed)
    algorithm = score(**options)
    new = batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(1))
    got, _ = algorithm.loss(new, algorithm.advantages(batch, lambda x: x))
    torch.testing.assert_close(got[batch.loss_mask], oracle(batch, new, **options)[batch.loss_mask], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_combination_keeps_the_laws(options):
    check_algorithm(score(**options), baseline=False)  # its baselines are per attempt, tested above


def test_stage_one_moves_the_first_attempt_by_its_kl_alone():
    batch = replace(batch_of(*GROUP), ref_logprobs=torch.full((4, 6), -1.0))
    algorithm = score(stage=1, kl_coef=0.5, kl_turns=[4.0, 1.0])
    filled = algorithm.advantages(batch, lambda x: x)
    logprobs = torch.zeros_like(batch.rewards).requires_grad_()
    algorithm.loss(logprobs, filled)[0].sum().backward()
    first = batch.turn_ids == 0
    # d/dp of 0.5 * 4 * (p - ref)^2 / 2 at p - ref = 1
    assert logprobs.grad[first].tolist() == [2.0] * int(first.sum())
    plain = torch.zeros_like(batch.rewards).requires_grad_()
    paid = outcome(leave_one_out)(batch, lambda x: x)  # the control: an outcome method moves it
    algorithm.loss(plain, replace(paid, kl_coef=filled.kl_coef))[0].sum().backward()
    assert plain.grad[first].tolist() != logprobs.grad[first].tolist()


def test_what_it_needs():
    assert score(stage=1).needs == {"old_logprobs", "ref_logprobs", "turn_rewards"}
    assert score(stage=2, kl_coef=0.0).needs == {"old_logprobs", "turn_rewards"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 3}, "algorithm.stage: expected 1 or 2, got 3"),
        ({"stage": 1, "alpha": 2.0}, "algorithm.alpha: expected nothing in stage 1, which pays no bonus, got 2.0"),
        ({"stage": 1, "discount": 0.5}, "algorithm.discount: expected nothing in stage 1"),
        ({"stage": 2, "alpha": -1.0}, "algorithm.alpha: expected at least 0, got -1.0"),
        ({"stage": 2, "discount": 1.5}, "algorithm.discount: expected at most 1, got 1.5"),
        ({"stage": 2, "baseline": "median"}, "algorithm.baseline: expected one of leave_one_out, mean, got 'median'"),
        ({"stage": 1, "kl_coef": 0.0}, "algorithm.kl_coef: expected more than 0 in stage 1"),
        ({"stage": 1, "kl_turns": [0.0, 1.0]}, "algorithm.kl_turns: expected a factor of the first attempt in stage 1"),
        ({"stage": 1, "kl_turns": [10.0]}, "algorithm.kl_turns: expected a factor of the first attempt in stage 1"),
        ({"stage": 1, "kl": "k1"}, "algorithm.kl: expected a form that holds the first attempt"),
        ({"stage": 2, "kl_in": "reward", "kl": "k1"}, "algorithm.kl_in: expected 'loss': the bonus compares rewards without KL, got "),
        ({"stage": 2, "clip_low": 2}, "algorithm.clip_low: expected 0 to 1, got 2"),
    ],
)
def test_an_option_that_is_wrong_or_has_no_effect_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        score(**options)
    assert str(error.value).startswith(message)
