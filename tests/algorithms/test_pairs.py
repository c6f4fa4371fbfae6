"""Pairs of trajectories: every rule by hand and against a naive oracle, how they are written down, and where their sides part."""

from collections import deque
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlft.algorithms.dpo import dpo, ipo
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.algorithms.pairs import build_pairs, demonstration_pairs, diverging, join, pairs_by_demonstration, pairs_by_reward
from rlft.testing.checks import example_batch
from rlft.types import Batch, Source


def identity(x):
    return x


def listed(pairs):
    return list(zip(*(side.tolist() for side in pairs), strict=True))


# Group 7 holds trajectories 0, 1, 3, 5 with totals 1, 0, 0.5, 1; group 2 holds 2 and 4 with 3 each; group 9 holds 6 alone.
TOTALS = torch.tensor([1.0, 0.0, 3.0, 0.5, 3.0, 1.0, 4.0])
GROUPS = torch.tensor([7, 7, 2, 7, 2, 7, 9])
TABLE = [
    ({"rule": "best_worst"}, [(0, 1)]),  # 5 is as good as 0 and comes later; group 2 has no difference
    ({"rule": "best_worst", "min_gap": 1.0}, [(0, 1)]),
    ({"rule": "best_worst", "min_gap": 1.5}, []),
    ({"rule": "ranked"}, [(0, 1), (5, 3)]),  # 1, 1, 0.5, 0: first with last, second with third
    ({"rule": "ranked", "min_gap": 0.5}, [(0, 1), (5, 3)]),
    ({"rule": "ranked", "min_gap": 0.6}, [(0, 1)]),
    ({"rule": "correct_wrong"}, [(0, 1), (5, 3)]),  # right 0, 5; wrong 1, 3
    ({"rule": "correct_wrong", "threshold": 0.5}, [(0, 1)]),  # right 0, 3, 5; wrong 1 alone
    ({"rule": "correct_wrong", "threshold": 0.25}, [(0, 1)]),
    ({"rule": "correct_wrong", "threshold": 1.5}, []),
]


@pytest.mark.parametrize(("options", "expected"), TABLE, ids=str)
def test_rules_worked_by_hand(options, expected):
    assert listed(build_pairs(TOTALS, GROUPS, **options)) == expected


def naive(totals, groups, rule, threshold=1.0, min_gap=0.0):
    """The same rules, told by taking members away from both ends of a queue."""
    pairs = set()
    for group in set(groups):
        members = [i for i in range(len(totals)) if groups[i] == group]
        if rule == "correct_wrong":
            right, wrong = deque(i for i in members if not totals[i] < threshold), deque(i for i in members if totals[i] < threshold)
            while right and wrong:
                pairs.add((right.popleft(), wrong.popleft()))
            continue
        while len(members) > 1:
            best = next(i for i in members if totals[i] == max(totals[j] for j in members))
            worst = [i for i in members if totals[i] == min(totals[j] for j in members)][-1]
            if totals[best] == totals[worst] or totals[best] - totals[worst] < min_gap:
                break
            pairs.add((best, worst))
            members.remove(best)
            members.remove(worst)
            if rule == "best_worst":
                break
    return pairs


RULES = [{"rule": "best_worst"}, {"rule": "ranked"}, {"rule": "ranked", "min_gap": 0.5}, {"rule": "correct_wrong", "threshold": 0.5}]
MEMBERS = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 3)), max_size=14)


@given(MEMBERS, st.sampled_from(RULES))
def test_every_rule_agrees_with_a_naive_oracle(members, options):
    totals, groups = [t for t, _ in members], [g for _, g in members]
    pairs = listed(build_pairs(torch.tensor(totals), torch.tensor(groups, dtype=torch.int64), **options))
    assert set(pairs) == naive(totals, groups, **options) and len(set(pairs)) == len(pairs)
    used = [i for pair in pairs for i in pair]
    assert len(set(used)) == len(used)
    assert all(totals[i] > totals[j] and groups[i] == groups[j] for i, j in pairs)


@pytest.mark.parametrize("options", RULES, ids=str)
def test_pairs_do_not_depend_on_how_groups_lie_among_each_other(options):
    order = torch.tensor([6, 2, 4, 0, 1, 3, 5])  # the groups one behind the other; within each the order stays
    moved = listed(build_pairs(TOTALS[order], GROUPS[order], **options))
    assert sorted((int(order[i]), int(order[j])) for i, j in moved) == sorted(listed(build_pairs(TOTALS, GROUPS, **options)))


def test_a_demonstration_wins_over_the_first_sample_that_says_something_else():
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3])
    demonstrated = [False, False, True, False, True, False, False, False, True]
    answers = [[5, 6], [5], [5, 6], [4], [7], [7], [1], [2], [3, 2]]
    # Group 0: trajectory 0 repeats the demonstration, 1 does not. Group 1: nothing differs. Group 2: no demonstration.
    assert listed(demonstration_pairs(demonstrated, answers, groups)) == [(2, 1), (8, 7)]


def test_two_demonstrations_are_no_pair():
    assert listed(demonstration_pairs([True, True], [[1], [2]], torch.tensor([0, 0]))) == []


def row_batch(token_ids, trained, traj_ids, rewards, turns=None, sources=None, group_ids=None) -> Batch:
    """Rows as written: trained says "x" where a token is, rewards lie on the last tokens."""
    T = max(map(len, token_ids))
    ids = torch.tensor([[*row, *[0] * (T - len(row))] for row in token_ids])
    mask = torch.tensor([[c == "x" for c in row.ljust(T, ".")] for row in trained])
    real = torch.tensor([[t < len(row) for t in range(T)] for row in token_ids])
    turn_ids = torch.where(mask, torch.tensor(turns or [0] * len(token_ids))[:, None], -1)
    totals = torch.zeros(ids.shape)
    for row, reward in enumerate(rewards):
        totals[row, len(token_ids[row]) - 1] = reward
    nothing = torch.zeros(len(token_ids), dtype=torch.int64)
    return Batch(
        token_ids=ids,
        attention_mask=real,
        loss_mask=mask,
        sources=torch.where(mask, sources or Source.POLICY, Source.PROMPT),
        turn_ids=turn_ids,
        rewards=totals,
        rollout_logprobs=torch.zeros(ids.shape),
        traj_ids=torch.tensor(traj_ids),
        group_ids=nothing if group_ids is None else torch.tensor(group_ids),
        policy_versions=nothing,
        truncated=nothing.bool(),
    )


def test_a_pair_is_written_as_sides_at_half_their_distance_and_the_rest_leaves_the_loss():
    rows = [[1, 5, 6], [1, 5], [1, 7, 7], [1, 8, 9]]
    batch = row_batch(rows, [".xx", ".x", ".xx", ".xx"], [0, 1, 2, 0], [0.25, 1.0, -2.0, 0.0])
    joined = pairs_by_reward("best_worst")(batch, identity)  # totals 0.25, 1, -2: trajectory 1 over 2, 3 apart
    assert joined.pair_ids.tolist() == [-1, 0, 0, -1]
    assert joined.advantages.tolist() == [[0, 0, 0], [0, 1.5, 0], [0, -1.5, -1.5], [0, 0, 0]]
    assert joined.loss_mask.tolist() == [[False] * 3, [False, True, False], [False, True, True], [False] * 3]
    ranked = pairs_by_reward("best_worst", min_gap=3.5)(batch, identity)
    assert not ranked.loss_mask.any() and ranked.pair_ids.tolist() == [-1] * 4


def test_a_trajectory_in_two_rows_is_in_its_pair_with_both():
    batch = row_batch([[1, 5], [1, 6], [1, 7]], [".x", ".x", ".x"], [4, 2, 4], [1.0, 3.0, 1.0], turns=[0, 0, 1])
    joined = pairs_by_reward("best_worst")(batch, identity)
    assert joined.pair_ids.tolist() == [0, 0, 0] and joined.advantages.sum(-1).tolist() == [-0.5, 0.5, -0.5]


def test_what_has_no_trained_token_is_in_no_pair():
    rows, marks, rewards = [[1, 5], [1, 6], [1, 7]], [".x", "..", ".x"], [0.0, 9.0, 1.0]
    joined = pairs_by_reward("best_worst")(row_batch(rows, marks, [0, 1, 2], rewards), identity)
    assert joined.pair_ids.tolist() == [0, -1, 0]
    trained = pairs_by_reward("best_worst")(row_batch(rows, [".x"] * 3, [0, 1, 2], rewards), identity)
    assert trained.pair_ids.tolist() == [0, 0, -1]


def test_the_demonstration_wins_whatever_the_rewards_say():
    batch = row_batch([[1, 5, 2], [1, 6, 2], [1, 5, 2]], [".xx"] * 3, [0, 1, 2], [1.0, 3.0, 0.0])
    shown = replace(batch, sources=torch.where(batch.traj_ids[:, None] == 2, Source.DEMONSTRATION, batch.sources))
    joined = pairs_by_demonstration()(shown, identity)  # the first sample repeats it
    assert joined.pair_ids.tolist() == [-1, 0, 0]
    assert joined.advantages.tolist() == [[0, 0, 0], [0, -0.5, -0.5], [0, 0.5, 0.5]]
    assert pairs_by_demonstration()(batch, identity).pair_ids.tolist() == [-1] * 3


def parted(rows, marks, traj_ids=(0, 1), turns=None):
    """The loss mask after `diverging`, as it is written; trajectory 0 is the chosen one."""
    batch = row_batch(rows, marks, traj_ids, [1.0 if i == 0 else 0.0 for i in traj_ids], turns)
    joined = join(batch, torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]))
    return ["".join("x" if yes else "." for yes in row[: len(ids)]) for row, ids in zip(diverging(joined), rows, strict=True)]


PARTED = [
    ([[1, 5, 6, 7], [1, 5, 8, 7]], [".xxx", ".xxx"], ["..xx", "..xx"]),
    ([[1, 5, 6], [1, 8, 6]], [".xx", ".xx"], [".xx", ".xx"]),  # equal again after they parted
    ([[1, 5, 6], [1, 5, 6, 7]], [".xx", ".xxx"], ["..x", "..xx"]),  # one begins with the other: the last common token stays
    ([[1, 5, 6], [1, 5, 6]], [".xx", ".xx"], ["..x", "..x"]),
    ([[1, 5, 3, 6], [1, 5, 3, 7]], [".x.x", ".x.x"], ["...x", "...x"]),  # 3 is the environment's
    ([[1, 5, 3, 6], [1, 5, 4, 6]], [".x.x", ".x.x"], ["...x", "...x"]),  # the environment's words differ
    ([[1, 5, 3, 6], [1, 5, 3, 7]], [".x.x", ".xxx"], ["...x", "..xx"]),  # 3 is trained on one side alone: it does not cancel
    ([[1, 5, 6], [2, 5, 6]], [".xx", ".xx"], [".xx", ".xx"]),  # other contexts
]


@pytest.mark.parametrize(("rows", "marks", "expected"), PARTED, ids=str)
def test_where_two_sides_part_worked_by_hand(rows, marks, expected):
    assert parted(rows, marks) == expected


def test_rows_are_compared_in_order_of_turns_whatever_their_order_in_the_batch():
    rows, marks = [[1, 5, 6], [2, 5, 7], [2, 5, 8], [1, 5, 9]], [".xx"] * 4
    # Turn 0 saw context 1 and turn 1 context 2, on both sides.
    assert parted(rows, marks, (0, 0, 1, 1), turns=[0, 1, 1, 0]) == ["..x"] * 4
    assert parted(rows, marks, (0, 0, 1, 1), turns=[0, 1, 0, 1]) == [".xx"] * 4


def policy_step(algorithm, batch, table, ref_table):
    """Loss and gradient of a policy that knows the token before only: equal contexts give equal probabilities."""
    before = torch.roll(batch.token_ids, 1, -1)
    ref_logprobs = ref_table.log_softmax(-1)[before, batch.token_ids]
    filled = algorithm.advantages(replace(batch, ref_logprobs=ref_logprobs), identity)
    weights = loss_weights(filled.loss_mask, filled.traj_ids, algorithm.aggregation, identity)
    table = table.clone().requires_grad_()
    loss = weighted_sum(algorithm.loss(table.log_softmax(-1)[before, batch.token_ids], filled)[0], weights)
    loss.backward()
    return float(loss.detach()), table.grad, int(filled.loss_mask.sum())


def common_beginnings():
    """Two groups of two, which part after a few tokens or not at all."""
    rows = [[1, 5, 6, 7, 2], [1, 5, 6, 8, 9, 2], [3, 4, 4], [3, 4, 4, 4, 2]]
    marks = [".xxxx", ".xxxxx", ".xx", ".xxxx"]
    return row_batch(rows, marks, [0, 1, 2, 3], [1.0, 0.0, 0.0, 2.0], group_ids=[0, 0, 1, 1])


def test_what_stands_before_the_parting_cancels_exactly():
    g = torch.Generator().manual_seed(0)
    table, ref_table = torch.randn(2, 10, 10, generator=g, dtype=torch.float64)
    for whole, suffix in [(dpo(), dpo(suffix=True)), (ipo(average=False), ipo(average=False, suffix=True))]:
        loss, gradient, tokens = policy_step(whole, common_beginnings(), table, ref_table)
        short_loss, short_gradient, fewer = policy_step(suffix, common_beginnings(), table, ref_table)
        assert short_loss == pytest.approx(loss, abs=1e-6) and torch.allclose(short_gradient, gradient, atol=1e-6)
        assert (tokens, fewer) == (15, 9) and gradient.abs().sum() > 0.01


def test_in_means_over_tokens_it_does_not_cancel():
    table, ref_table = torch.randn(2, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss, *_ = policy_step(ipo(average=True), common_beginnings(), table, ref_table)
    other, *_ = policy_step(ipo(average=True, suffix=True), common_beginnings(), table, ref_table)
    assert abs(loss - other) > 0.01


def test_the_suffix_keeps_advantages_off_the_tokens_it_leaves_out():
    joined = pairs_by_reward("best_worst", suffix=True)(common_beginnings(), identity)
    assert ((joined.advantages != 0) == joined.loss_mask).all()


def test_on_rows_that_share_nothing_the_suffix_changes_nothing():
    whole, suffix = (pairs_by_reward("ranked", suffix=on)(example_batch((4, 3)), identity) for on in (False, True))
    assert torch.equal(whole.loss_mask, suffix.loss_mask) and whole.loss_mask.any()
