"""Trajectories become rows, rows a batch, a batch micro-batches: nothing lost, nothing trained twice."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.algorithms.advantages import outcomes
from rlft.algorithms.masking import loss_weights
from rlft.errors import ConfigError
from rlft.learner.batching import assign, collate, empty_batch, micro_batches, minibatches, units
from rlft.learner.rows import OWNED, STREAMS, Row, demonstration_row, pack_rows, to_rows, unpack_rows
from rlft.testing.checks import example_batch
from rlft.types import Completion, Source, Task, Trajectory, Turn

PROMPT, POLICY, ENVIRONMENT, HINT, DEMONSTRATION, PADDING = Source
FEW = settings(max_examples=30, deadline=None)


def turn(prompt, sampled, reward=0.0, version=0, sources=None, logprobs=None):
    """A turn; by default its context is the prompt's and its completion the policy's."""
    logprobs = [-0.1 * token for token in sampled] if logprobs is None else logprobs
    completion = Completion(sampled, logprobs, "stop", version)
    sources = [PROMPT] * len(prompt) + [POLICY] * len(sampled) if sources is None else sources
    return Turn(prompt, completion, {"role": "assistant", "content": ""}, sources, reward)


def trajectory(*turns, reward=0.0, index=0, group_id="g", status="completed"):
    return Trajectory(Task("t", ()), index, turns, status, group_id, reward)


def one_row(num_sampled, index=0, group_id="g", reward=0.0):
    return to_rows(trajectory(turn([1], list(range(2, 2 + num_sampled))), index=index, group_id=group_id, reward=reward))[0]


# to_rows


def test_turns_that_extend_their_context_make_one_row():
    first = turn([1, 2], [3, 4], reward=0.5)
    second = turn([1, 2, 3, 4, 9], [5, 6], sources=[PROMPT, PROMPT, POLICY, POLICY, ENVIRONMENT, POLICY, POLICY])
    (row,) = to_rows(trajectory(first, second, reward=1.0))
    assert row.token_ids.tolist() == [1, 2, 3, 4, 9, 5, 6] and len(row) == 7
    assert row.sources.tolist() == [PROMPT, PROMPT, POLICY, POLICY, ENVIRONMENT, POLICY, POLICY]
    assert row.turn_ids.tolist() == [-1, -1, 0, 0, -1, 1, 1]
    assert row.rewards.tolist() == [0, 0, 0, 0.5, 0, 0, 1.0]
    assert row.logprobs.tolist() == pytest.approx([0, 0, -0.3, -0.4, 0, -0.5, -0.6])


@pytest.mark.parametrize(
    "context",
    [[1, 7, 3, 9], [1, 2], [9], [2, 3, 1]],
    ids=["a token rewritten", "history dropped", "a new start", "reordered"],
)
def test_rewritten_history_opens_a_new_row(context):
    rows = to_rows(trajectory(turn([1, 2], [3], reward=0.25), turn(context, [5], reward=0.5), reward=1.0))
    assert [row.token_ids.tolist() for row in rows] == [[1, 2, 3], [*context, 5]]
    assert [row.rewards.tolist() for row in rows] == [[0, 0, 0.25], [0.0] * len(context) + [1.5]]
    assert [row.traj_id for row in rows] == [0, 0]


def test_the_policys_own_words_in_a_rewritten_context_are_not_trained_again():
    # History lost token 2; the words 3 4 of the first turn are still in it.
    second = turn([1, 3, 4], [5], sources=[PROMPT, POLICY, POLICY, POLICY])
    batch = collate(to_rows(trajectory(turn([1, 2], [3, 4]), second)), pad_id=0)
    assert [batch.token_ids[i][batch.loss_mask[i]].tolist() for i in range(2)] == [[3, 4], [5]]


def test_a_context_equal_to_the_row_so_far_continues_it():
    (row,) = to_rows(trajectory(turn([1, 2], [3]), turn([1, 2, 3], [4])))
    assert row.token_ids.tolist() == [1, 2, 3, 4] and row.turn_ids.tolist() == [-1, -1, 0, 1]


def test_hints_in_a_completion_are_kept_but_not_trained():
    hinted = turn([1], [2, 3, 4], reward=2.0, sources=[PROMPT, POLICY, HINT, HINT], logprobs=[-0.5, -9.0, float("nan")])
    (row,) = to_rows(trajectory(hinted))
    assert row.token_ids.tolist() == [1, 2, 3, 4] and row.turn_ids.tolist() == [-1, 0, -1, -1]
    assert row.logprobs.tolist() == [0, -0.5, 0, 0]
    assert row.rewards.tolist() == [0, 2, 0, 0], "the reward lies on the last sampled token"


def test_a_turn_that_sampled_nothing_keeps_its_reward():
    (alone,) = to_rows(trajectory(turn([1, 2], []), reward=0.5))
    assert alone.rewards.tolist() == [0, 0.5]
    (after,) = to_rows(trajectory(turn([1], [2], reward=0.25), turn([1, 2, 9], []), reward=1.0))
    assert after.rewards.tolist() == [0, 1.25, 0]


def test_the_oldest_policy_version_of_a_trajectory_counts():
    rows = to_rows(trajectory(turn([1], [2], version=7), turn([9], [3], version=5)))
    assert [row.policy_version for row in rows] == [5, 5]


def test_every_row_says_whether_its_trajectory_was_truncated():
    turns = turn([1], [2]), turn([9], [3])
    assert [row.truncated for row in to_rows(trajectory(*turns, status="truncated"))] == [True, True]
    assert [row.truncated for row in to_rows(trajectory(*turns))] == [False, False]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (turn([1, 2], [3], sources=[PROMPT, POLICY]), "g/0, turn 0: 2 \\+ 1 tokens need 3 sources, got 2"),
        (turn([1, 2], [3], logprobs=[]), "g/0, turn 0: 1 sampled tokens need 1 logprobs, got 0"),
    ],
)
def test_streams_that_are_not_aligned_are_an_error(bad, message):
    with pytest.raises(ValueError, match=message):
        to_rows(trajectory(bad))


def test_a_block_gives_back_the_rows_that_were_packed():
    rows = [*to_rows(trajectory(turn([1, 2], [3], reward=0.5), turn([9], [4, 5]), index=3)), replace(one_row(4), policy_version=7)]
    back = unpack_rows(pack_rows(rows))
    for row, same in zip(rows, back, strict=True):
        for name in ("token_ids", "sources", "turn_ids", "rewards", "logprobs"):
            assert getattr(row, name).tolist() == getattr(same, name).tolist()
            assert getattr(row, name).dtype == getattr(same, name).dtype
        assert [getattr(row, name) for name in OWNED[:-1]] == [getattr(same, name) for name in OWNED[:-1]]


def test_every_field_of_a_row_travels_in_a_block():
    row = Row(
        *(np.asarray([1, 2], dtype) for dtype in (np.int32, np.int8, np.int16, np.float32, np.float32)),
        traj_id=3, group_id="g", policy_version=7, truncated=True, tags=("attempt", ""), parts={"right": 0.5}, baseline=0.25,
    )  # fmt: skip
    assert tuple(row.__dict__) == STREAMS + OWNED, "a field of neither kind would be lost"
    assert OWNED == ("traj_id", "group_id", "policy_version", "truncated", "tags", "parts", "baseline")
    (plain, same) = unpack_rows(pack_rows([one_row(1), row]))
    assert [getattr(same, name) for name in OWNED] == [3, "g", 7, True, ("attempt", ""), {"right": 0.5}, 0.25]
    assert math.isnan(plain.baseline) and plain.parts == {}


def test_sampled_ids_and_logprobs_are_the_trained_ones():
    first, second = turn([1, 2], [3, 4]), turn([8], [5, 6, 7])
    batch = collate(to_rows(trajectory(first, second)), pad_id=0)
    assert batch.token_ids[batch.loss_mask].tolist() == [3, 4, 5, 6, 7]
    assert batch.rollout_logprobs[batch.loss_mask].tolist() == pytest.approx([-0.3, -0.4, -0.5, -0.6, -0.7])


# collate


def test_rows_are_padded_with_streams_that_say_so():
    batch = collate([one_row(2), one_row(9, index=1)], pad_id=77)
    assert batch.token_ids.shape == (2, 10)
    assert batch.token_ids[0].tolist() == [1, 2, 3] + [77] * 7
    assert batch.attention_mask.sum(-1).tolist() == [3, 10]
    off = ~batch.attention_mask
    assert (batch.sources[off] == PADDING).all() and (batch.turn_ids[off] == -1).all()
    assert not batch.rewards[off].any() and not batch.rollout_logprobs[off].any() and not batch.loss_mask[off].any()


@pytest.mark.parametrize("pad_id", [3, 2, 0])
def test_a_pad_id_that_is_also_eos_or_a_word_hides_no_token(pad_id):
    shorter = trajectory(turn([3, 1], [2, 3, 3]))  # 3 is EOS and stands everywhere
    batch = collate([*to_rows(shorter), one_row(7, index=1)], pad_id)
    assert batch.attention_mask[0].tolist() == [True] * 5 + [False] * 3
    assert batch.loss_mask[0].tolist() == [False, False, True, True, True, False, False, False]


def test_trajectories_and_groups_are_numbered_by_identity():
    split = to_rows(trajectory(turn([1], [2]), turn([9], [3]), index=0, group_id="a"))
    batch = collate([one_row(1, 4, "b"), *split, one_row(1, 0, "b"), one_row(1, 1, "a")], pad_id=0)
    assert batch.traj_ids.tolist() == [0, 1, 1, 2, 3]
    assert batch.group_ids.tolist() == [0, 1, 1, 0, 1]


def test_the_first_token_is_never_trained_since_nothing_predicts_it():
    batch = collate(to_rows(trajectory(turn([], [5, 6]))), pad_id=0)
    assert batch.loss_mask[0].tolist() == [False, True]


def test_rewards_survive_from_turns_to_outcomes():
    one = trajectory(turn([1], [2], reward=0.5), turn([9], [3], reward=0.25), reward=1.0)
    other = trajectory(turn([1], [2, 3]), reward=-1.0, index=1)
    totals, _ = outcomes(collate([*to_rows(one), *to_rows(other)], pad_id=0))
    assert totals.tolist() == [one.outcome, other.outcome] == [1.75, -1.0]


def test_dtypes_and_versions_are_as_promised():
    batch = collate([replace(one_row(2), policy_version=3, truncated=True)], pad_id=0)
    assert batch.token_ids.dtype == batch.sources.dtype == batch.turn_ids.dtype == torch.int64
    assert batch.rewards.dtype == batch.rollout_logprobs.dtype == torch.float32
    assert batch.policy_versions.tolist() == [3] and batch.truncated.tolist() == [True]


def test_version_and_truncation_are_those_of_the_row_itself():
    batch = collate([one_row(2), replace(one_row(2, index=1), policy_version=3, truncated=True)], pad_id=0)
    assert batch.policy_versions.tolist() == [0, 3] and batch.truncated.tolist() == [False, True]


def test_a_demonstration_trains_its_target_only():
    row = demonstration_row([1, 2], [3, 4, 5], "d")
    batch = collate([row, demonstration_row([1], [2], "e")], pad_id=0)
    assert batch.token_ids[0][batch.loss_mask[0]].tolist() == [3, 4, 5]
    assert row.sources.tolist() == [PROMPT] * 2 + [DEMONSTRATION] * 3
    assert batch.traj_ids.tolist() == batch.group_ids.tolist() == [0, 1]
    assert row.turn_ids.tolist() == [-1, -1, 0, 0, 0] and not row.rewards.any() and not row.logprobs.any() and row.traj_id == 0


def test_a_demonstration_may_join_a_group_with_a_reward_of_its_own():
    sampled = [one_row(2, index=0, reward=0.5), one_row(3, index=1)]
    row = demonstration_row([1, 2], [3, 4, 5], "g", traj_id=2, reward=1.5)
    assert row.rewards.tolist() == [0, 0, 0, 0, 1.5] and row.traj_id == 2
    batch = collate([*sampled, row], pad_id=0)
    assert batch.group_ids.tolist() == [0, 0, 0] and outcomes(batch)[0].tolist() == [0.5, 0.0, 1.5]


def several_turns():
    """A trajectory in two rows with turns of the tags attempt, reflection, attempt; tokens 2 to 6 in order."""
    turns = turn([1], [2, 3]), turn([1, 2, 3, 9], [4], sources=[PROMPT, POLICY, POLICY, ENVIRONMENT, POLICY]), turn([8], [5, 6])
    tagged = [replace(t, tag=tag) for t, tag in zip(turns, ("attempt", "reflection", "attempt"), strict=True)]
    return to_rows(trajectory(*tagged, reward=1.0))


@pytest.mark.parametrize(
    ("tags", "trained"),
    [
        ((), [2, 3, 4, 5, 6]),
        (("attempt",), [2, 3, 5, 6]),
        (("reflection",), [4]),
        (("attempt", "reflection"), [2, 3, 4, 5, 6]),
        (("retry",), []),
    ],
)
def test_turns_with_other_tags_are_not_trained_but_stay_in_every_other_stream(tags, trained):
    rows = several_turns()
    batch, whole = collate(rows, 0, tags), collate(rows, 0)
    assert len(rows) == 2 and batch.token_ids[batch.loss_mask].tolist() == trained
    for name in ("turn_ids", "rewards", "rollout_logprobs", "sources", "attention_mask"):
        assert torch.equal(getattr(batch, name), getattr(whole, name))


def test_a_first_token_is_not_trained_whatever_its_tag():
    (row,) = to_rows(trajectory(replace(turn([], [5, 6]), tag="attempt")))
    assert collate([row], 0, ("attempt",)).loss_mask[0].tolist() == [False, True]


def test_parts_stand_in_the_order_asked_for_on_every_row_of_the_trajectory():
    both = replace(trajectory(turn([1], [2]), turn([9], [3])), parts={"right": 1.0, "format": 0.25, "other": 9.0})
    one = replace(trajectory(turn([1], [2, 3]), index=1), parts={"format": -0.5, "right": 0})
    batch = collate([*to_rows(both), *to_rows(one)], 0, parts=("format", "right"))
    assert batch.parts.tolist() == [[0.25, 1.0], [0.25, 1.0], [-0.5, 0.0]] and batch.parts.dtype == torch.float32
    assert collate(to_rows(both), 0, parts=("right", "format")).parts.tolist() == [[1.0, 0.25], [1.0, 0.25]]
    assert collate(to_rows(both), 0).parts is None


def test_a_part_that_a_trajectory_does_not_have_is_an_error_in_words():
    with_parts = to_rows(replace(trajectory(turn([1], [2])), parts={"right": 1.0, "format": 0.5}))
    with pytest.raises(ConfigError, match=r"algorithm: no reward part 'rihgt'; a trajectory has \['format', 'right'\]"):
        collate(with_parts, 0, parts=("right", "rihgt"))
    with pytest.raises(ConfigError, match="no reward part 'right'; a trajectory has none"):
        collate([*with_parts, one_row(2)], 0, parts=("right",))


def test_what_the_greedy_answer_earned_stands_on_every_row_and_is_nan_where_there_was_none():
    rows = [*to_rows(trajectory(turn([1], [2]), turn([9], [3])), baseline=0.75), *to_rows(trajectory(turn([1], [2]), index=1))]
    baselines = collate(rows, 0).baselines
    assert baselines[:2].tolist() == [0.75, 0.75] and baselines[2].isnan() and baselines.dtype == torch.float32


def test_an_empty_batch_has_the_parts_that_the_other_ranks_have():
    assert empty_batch(5, ("right", "format")).parts.tolist() == [[0.0, 0.0]] and empty_batch(5).parts is None


def test_an_empty_batch_is_one_row_without_a_trained_token():
    batch = empty_batch(pad_id=5)
    assert batch.token_ids.shape == (1, 2) and not batch.loss_mask.any() and not batch.rewards.any()
    assert batch.attention_mask.any(), "attention over nothing would be NaN"
    assert len(micro_batches(batch, 100, at_least=3)) == 3


# micro_batches


def signature(batch, i):
    """What identifies a row, whatever it is padded to."""
    n = int(batch.attention_mask[i].sum())
    return tuple(batch.token_ids[i, :n].tolist()), int(batch.traj_ids[i]), tuple(batch.loss_mask[i, :n].tolist())


def signatures(parts):
    return [signature(part, i) for part in parts for i in range(len(part.traj_ids))]


@FEW
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 120))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, max_tokens):
    batch = collate([one_row(n, index=i) for i, n in enumerate(lengths)], pad_id=0)
    parts = micro_batches(batch, max_tokens)
    assert sorted(signatures(parts)) == sorted(signatures([batch]))
    for part in parts:
        rows, width = part.token_ids.shape
        assert rows * width <= max_tokens or rows == 1
        assert width == int(part.attention_mask.sum(-1).max()), "padded to its own longest row only"
    kept = [len(ids) for ids, _, _ in signatures(parts)]
    assert kept == sorted(kept), "shortest first"


def test_micro_batches_are_as_full_as_the_budget_allows():
    batch = collate([one_row(n, index=i) for i, n in enumerate([3, 14, 3, 3, 14, 3])], pad_id=0)
    assert [tuple(part.token_ids.shape) for part in micro_batches(batch, 30)] == [(4, 4), (2, 15)]
    assert [tuple(part.token_ids.shape) for part in micro_batches(batch, 15)] == [(3, 4), (1, 4), (1, 15), (1, 15)]


def test_the_surplus_that_makes_ranks_equal_carries_no_loss():
    batch = example_batch()
    batch = replace(batch, loss_weights=loss_weights(batch.loss_mask, batch.traj_ids, "token", lambda x: x))
    plain, more = micro_batches(batch, 24), micro_batches(batch, 24, at_least=len(micro_batches(batch, 24)) + 2)
    assert signatures(more[:-2]) == signatures(plain)
    for part in more[-2:]:
        assert part.attention_mask.any() and not part.loss_mask.any() and not part.loss_weights.any()
    assert float(sum(part.loss_weights.sum() for part in more)) == pytest.approx(1.0)
    assert len(micro_batches(batch, 24, at_least=1)) == len(plain)


def test_every_stream_of_a_row_moves_with_it():
    batch = example_batch()
    for part in micro_batches(batch, 24):
        for i in range(len(part.traj_ids)):
            (home,) = (j for j in range(len(batch.traj_ids)) if signature(batch, j) == signature(part, i))
            width = part.token_ids.shape[1]
            assert torch.equal(part.old_logprobs[i], batch.old_logprobs[home, :width])
            assert torch.equal(part.rewards[i], batch.rewards[home, :width])
            assert part.truncated[i] == batch.truncated[home]


# units


def paired():
    """Trajectories 0 to 7, two of them in two rows; 1 and 5, 0 and 6 are pairs. Rows 0 1 | 2 | 3 | 4 | 5 6 | 7 | 8 | 9."""
    batch = example_batch()
    assert batch.traj_ids.tolist() == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]
    return replace(batch, pair_ids=torch.tensor([1, 1, 0, -1, -1, -1, -1, 0, 1, -1]))


def test_units_are_rows_trajectories_or_pairs():
    batch = paired()
    assert units(batch, "row") == [[row] for row in range(10)]
    assert units(batch, "trajectory") == [[0, 1], [2], [3], [4], [5, 6], [7], [8], [9]]
    assert units(batch, "pair") == [[0, 1, 8], [2, 7], [3], [4], [5, 6], [9]]
    assert units(replace(batch, pair_ids=None), "pair") == units(batch, "trajectory")


def test_a_pair_and_a_trajectory_of_the_same_number_are_two_units():
    batch = replace(paired(), pair_ids=torch.tensor([-1, -1, 0, 0, -1, -1, -1, -1, -1, -1]))
    assert units(batch, "pair") == [[0, 1], [2, 3], [4], [5, 6], [7], [8], [9]]


@pytest.mark.parametrize("unit", ["row", "trajectory", "pair"])
@pytest.mark.parametrize("max_tokens", [1, 24, 40, 1000])
def test_micro_batches_hold_every_unit_whole_and_once_within_the_budget(unit, max_tokens):
    batch = paired()
    parts = micro_batches(batch, max_tokens, unit=unit)
    assert sorted(signatures(parts)) == sorted(signatures([batch]))
    homes = [{j for s in signatures([part]) for j in range(10) if signature(batch, j) == s} for part in parts]
    assert sum(map(len, homes)) == 10, "rows are told apart"
    for part, home in zip(parts, homes, strict=True):
        whole = [rows for rows in units(batch, unit) if set(rows) <= home]
        assert sum(map(len, whole)) == len(home), "no unit is cut"
        assert part.token_ids.numel() <= max_tokens or len(whole) == 1
    assert (len(parts) == 1) == (max_tokens == 1000)


def test_a_unit_counts_for_the_budget_with_all_its_rows_at_the_width_of_its_longest():
    # Rows of 3, 15 | 4 | 6 tokens: units of widths 15, 4 and 6. Sorted: 4, 6, 15.
    lengths = [(2, 0), (14, 0), (3, 1), (5, 2)]
    batch = collate([one_row(n, index=i) for n, i in lengths], pad_id=0)
    shapes = {budget: [tuple(p.token_ids.shape) for p in micro_batches(batch, budget, unit="trajectory")] for budget in (12, 11, 60, 59)}
    assert shapes[12] == [(2, 6), (2, 15)] and shapes[11] == [(1, 4), (1, 6), (2, 15)]
    assert shapes[60] == [(4, 15)] and shapes[59] == [(2, 6), (2, 15)]


def test_the_surplus_micro_batches_are_whole_units_without_loss():
    batch = paired()
    parts = micro_batches(batch, 1000, at_least=3, unit="pair")
    assert len(parts) == 3 and parts[0].loss_mask.any()
    for part in parts[1:]:
        ids = {signature(batch, j)[:2] for j in range(10)} & {s[:2] for s in signatures([part])}
        assert not part.loss_mask.any() and len(ids) == len(part.traj_ids)
        assert {s[:2] for s in signatures([part])} in [{signature(batch, j)[:2] for j in rows} for rows in units(batch, "pair")]


def test_the_surplus_has_every_row_of_its_unit():
    split = collate(to_rows(trajectory(turn([1], [2]), turn([9], [3]))), pad_id=0)
    assert [len(part.traj_ids) for part in micro_batches(split, 1000, at_least=2, unit="trajectory")] == [2, 2]
    assert [len(part.traj_ids) for part in micro_batches(split, 1000, at_least=2, unit="row")] == [2, 1]


# minibatches


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_minibatches_are_whole_trajectories_each_exactly_once(number):
    batch = example_batch()  # 8 trajectories, two of them in two rows
    parts = minibatches(batch, number, torch.Generator().manual_seed(0))
    assert len(parts) == number and sorted(signatures(parts)) == sorted(signatures([batch]))
    ids = [set(part.traj_ids.tolist()) for part in parts]
    assert sum(map(len, ids)) == len(set.union(*ids)), "no trajectory is in two parts"
    assert max(map(len, ids)) - min(map(len, ids)) <= 1


@pytest.mark.parametrize("number", [2, 3, 5, 6])
def test_minibatches_keep_pairs_together(number):
    batch = paired()
    for seed in range(4):
        parts = minibatches(batch, number, torch.Generator().manual_seed(seed))
        assert len(parts) == number and sorted(signatures(parts)) == sorted(signatures([batch]))
        for pair in (0, 1):
            holders = [part for part in parts if (part.pair_ids == pair).any()]
            assert len(holders) == 1 and int((holders[0].pair_ids == pair).sum()) == int((batch.pair_ids == pair).sum())


def test_minibatches_are_shuffled_by_the_generator_alone():
    batch = example_batch()
    cuts = [
        [part.traj_ids.tolist() for part in minibatches(batch, 4, torch.Generator().manual_seed(seed))] for seed in (1, 1, 2)
    ]
    assert cuts[0] == cuts[1] != cuts[2]


def test_surplus_minibatches_carry_no_loss():
    batch = example_batch((2,))
    parts = minibatches(batch, 4, torch.Generator().manual_seed(0))
    trained = [bool(part.loss_mask.any()) for part in parts]
    assert len(parts) == 4 and trained.count(True) == 2 and all(len(part.traj_ids) for part in parts)


# assign


@FEW
@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(1, 5))
def test_each_group_goes_to_one_rank_and_loads_differ_by_at_most_one_group(num_tokens, num_ranks):
    owned = assign(num_tokens, num_ranks)
    assert len(owned) == num_ranks and sorted(sum(owned, [])) == list(range(len(num_tokens)))
    assert all(items == sorted(items) for items in owned)
    loads = [sum(num_tokens[i] for i in items) for items in owned]
    assert max(loads) - min(loads) <= max(num_tokens, default=0)
    assert owned == assign(num_tokens, num_ranks)


def test_assign_balances_as_worked_by_hand():
    # 9 to rank 0; 5 and the first 4 to rank 1; at 9 against 9 the second 4 to rank 0; 2 to rank 1.
    assert assign([5, 9, 4, 4, 2], 2) == [[1, 3], [0, 2, 4]]
    assert assign([7, 7, 7], 3) == [[0], [1], [2]]
    assert assign([3], 2) == [[0], []]


def test_row_arrays_are_small():
    row = one_row(3)
    assert [row.token_ids.dtype, row.sources.dtype, row.turn_ids.dtype] == [np.int32, np.int8, np.int16]
    assert row.rewards.dtype == row.logprobs.dtype == np.float32
