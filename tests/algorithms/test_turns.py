"""Turn-level views: a table worked by hand, loops over the trajectories themselves, and states that are the same."""

import random
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import group_centered, group_normalized, leave_one_out
from rlft.algorithms.turns import Turns, compare, in_force, on_turns, rewards_to_go, same_state, same_turn, turns_of
from rlft.learner.batching import collate, empty_batch
from rlft.learner.rows import to_rows
from rlft.types import Completion, Source, Task, Trajectory, Turn

P, E, S, H = Source.PROMPT, Source.ENVIRONMENT, Source.POLICY, Source.HINT


def play(steps, index=0, group="g", reward=0.0):
    """A trajectory from steps of (what is said to the policy, what it says, reward, how): "" goes on in the same
    row, "rewrite" drops the history, "injected" puts words in its mouth."""
    context, sources, turns = [], [], []
    for said, sampled, earned, how in steps:
        if how == "rewrite":
            context, sources = [], []
        prompt, before = [*context, *said], [*sources, *[E if turns else P] * len(said)]
        written = [H if how == "injected" else S] * len(sampled)
        completion = Completion(sampled, [-0.5] * len(sampled), "stop", 0)
        turns.append(Turn(prompt, completion, {"role": "assistant"}, [*before, *written], earned))
        context, sources = [*prompt, *sampled], [*before, *written]
    return Trajectory(Task("t", ()), index, tuple(turns), "completed", group, reward)


def batch_of(*trajectories):
    return collate([row for trajectory in trajectories for row in to_rows(trajectory)], pad_id=0)


TWO_ROWS = play([([1, 2], [11, 12], 0.5, ""), ([3], [13], 0.25, ""), ([7, 8], [14, 15], 1.0, "rewrite")], reward=2.0)
INJECTED = play([([1, 2], [21, 22], 8.0, "injected"), ([3], [23], 0.5, "")], index=1)


def test_rewards_sampled_turns_and_what_is_to_go_as_worked_by_hand():
    batch = batch_of(TWO_ROWS, INJECTED)
    assert batch.token_ids.tolist() == [[1, 2, 11, 12, 3, 13], [7, 8, 14, 15, 0, 0], [1, 2, 21, 22, 3, 23]]
    # Row 1 opens with turn 2, so what stands before it there stands after turn 1.
    # Turn 0 of the last row was injected: its reward lies on token 3, before turn 1 begins.
    assert in_force(batch).tolist() == [[0, 0, 0, 0, 0, 1], [1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 1]]
    turns = turns_of(batch)
    assert turns.rewards.tolist() == [[0.5, 0.25, 3.0], [8.0, 0.5, 0.0]]
    assert turns.sampled.tolist() == [[True, True, True], [False, True, False]]
    assert turns.group_ids.tolist() == [0, 0]
    # 0.25 + 3 / 2 = 1.75, 0.5 + 1.75 / 2 = 1.375; 8 + 0.5 / 2 = 8.25
    assert rewards_to_go(turns.rewards, 0.5).tolist() == [[1.375, 1.75, 3.0], [8.25, 0.5, 0.0]]
    assert rewards_to_go(turns.rewards).tolist() == [[3.75, 3.25, 3.0], [8.5, 0.5, 0.0]]


def test_a_turns_number_stands_on_its_trained_tokens_alone():
    batch = batch_of(TWO_ROWS, INJECTED)
    numbers = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert on_turns(batch, numbers).tolist() == [[0, 0, 1, 1, 0, 2], [0, 0, 3, 3, 0, 0], [0, 0, 0, 0, 0, 5]]
    untrained = replace(batch, loss_mask=batch.loss_mask & (batch.turn_ids != 1))
    assert on_turns(untrained, numbers).tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 3, 3, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_a_turn_is_compared_with_the_same_turn_of_its_group():
    sampled = torch.tensor([[True, True], [True, True], [True, False], [False, True], [True, True]])
    turns = Turns(torch.zeros(5, 2), sampled, torch.tensor([4, 4, 4, 4, 7]))
    values = torch.tensor([[1.0, 0.0], [2.0, 3.0], [6.0, 99.0], [99.0, 9.0], [5.0, 5.0]])
    # Turn 0: 1, 2, 6 of mean 3. Turn 1: 0, 3, 9 of mean 4. The last trajectory is alone.
    assert compare(group_centered, values, same_turn(turns)).tolist() == [[-2, -4], [-1, -1], [3, 0], [0, 5], [0, 0]]
    # Turn 0: 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2. Turn 1: 0 - 6, 3 - 4.5, 9 - 1.5.
    assert compare(leave_one_out, values, same_turn(turns)).tolist() == [[-3, -6], [-1.5, -1.5], [4.5, 0], [0, 7.5], [0, 0]]


@pytest.mark.parametrize("estimator", [group_centered, group_normalized, leave_one_out])
def test_equal_rewards_in_a_turn_get_exactly_zero_whatever_the_other_turns_hold(estimator):
    turns = Turns(torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, dtype=torch.int64))
    out = compare(estimator, torch.tensor([[0.1, 5.0], [0.1, 6.0], [0.1, 9.0]]), same_turn(turns))
    assert not out[:, 0].any() and out[:, 1].all()


def test_nobody_to_compare_gives_zeros():
    values, keys = torch.ones(2, 3), torch.full((2, 3), -1)
    for estimator in (group_centered, group_normalized, leave_one_out):
        assert compare(estimator, values, keys).tolist() == [[0.0] * 3] * 2


def test_the_state_is_what_was_said_since_the_turn_before():
    one = play([([1], [5], 0, ""), ([2, 3], [6], 0, ""), ([2, 3], [7], 0, "")])  # comes back to where it was
    two = play([([1], [8, 9], 0, ""), ([2], [6], 0, ""), ([2, 3], [5], 0, "")], index=1)
    other = play([([1], [5], 0, ""), ([2, 3], [6], 0, "")], group="h")
    keys = same_state(batch_of(one, two, other)).tolist()
    start, back, near, start_of_h, back_in_h = keys[0][0], keys[0][1], keys[1][1], keys[2][0], keys[2][1]
    assert keys == [[start, back, back], [start, near, back], [start_of_h, back_in_h, -1]]
    assert len({start, back, near, start_of_h, back_in_h}) == 5


def test_a_rewritten_history_is_the_state_and_a_hint_inside_a_turn_is_not():
    one = play([([1], [5], 0, ""), ([2, 3], [6], 0, "rewrite")])
    two = play([([1], [5], 0, ""), ([3], [6], 0, "rewrite")], index=1)
    keys = same_state(batch_of(one, two))
    assert keys[0, 0] == keys[1, 0] and keys[0, 1] != keys[1, 1]
    plain = batch_of(play([([1], [5, 6, 7], 0, ""), ([3], [8], 0, "")]))
    hinted = replace(plain, turn_ids=torch.tensor([[-1, 0, -1, 0, -1, 1]]))
    assert same_state(hinted).tolist() == same_state(plain).tolist()


def test_an_injected_attempt_is_part_of_the_state():
    one, same, other = (
        play([([1], said, 0, "injected"), ([2], [6], 0, "")], index) for index, said in enumerate([[21], [21], [22]])
    )
    keys = same_state(batch_of(one, same, other))
    assert keys[:, 0].tolist() == [-1] * 3 and keys[0, 1] == keys[1, 1] != keys[2, 1]


def some_trajectories(seed, number=9):
    """Ragged ones of up to four turns in three groups, with rewritten histories, injected first attempts and empty turns."""
    rng = random.Random(seed)
    out = []
    for i in range(number):
        steps = []
        for k in range(rng.randint(1, 4)):
            after = steps[-1][3] if steps else "start"
            how = rng.choice(["injected", ""]) if k == 0 else rng.choice(["rewrite", "", ""]) if after != "injected" else ""
            empty = how == "" and after in ("", "rewrite") and rng.random() < 0.3
            sampled = [] if empty else [rng.randint(10, 19) for _ in range(rng.randint(1, 4))]
            steps.append(([rng.randint(1, 2) for _ in range(rng.randint(1, 2))], sampled, rng.randint(-8, 8) / 8, how))
        out.append(play(steps, index=i // 3, group=f"g{i % 3}", reward=rng.randint(0, 8) / 8))
    return out


@pytest.mark.parametrize("seed", range(8))
def test_the_table_agrees_with_the_trajectories_themselves(seed):
    trajectories = some_trajectories(seed)
    turns = turns_of(batch_of(*trajectories))
    for m, trajectory in enumerate(trajectories):
        sampled = [bool(turn.completion.token_ids) and S in turn.sources[-1:] for turn in trajectory.turns]
        # A turn that sampled nothing leaves its reward with the turn before, an injected one keeps it.
        holder, earned = 0, [0.0] * turns.rewards.shape[1]
        for k, turn in enumerate(trajectory.turns):
            holder = k if sampled[k] else holder
            earned[holder] += turn.reward + (trajectory.reward if k == len(trajectory.turns) - 1 else 0.0)
        assert turns.rewards[m].tolist() == earned
        assert turns.sampled[m].tolist() == sampled + [False] * (len(earned) - len(sampled))


@pytest.mark.parametrize("seed", range(4))
def test_returns_and_baselines_agree_with_loops(seed):
    turns = turns_of(batch_of(*some_trajectories(seed)))
    M, K = turns.rewards.shape
    to_go = rewards_to_go(turns.rewards, 0.9)
    centered = compare(group_centered, to_go, same_turn(turns))
    for m in range(M):
        for k in range(K):
            assert float(to_go[m, k]) == pytest.approx(sum(0.9**j * float(turns.rewards[m, k + j]) for j in range(K - k)), abs=1e-6)
            others = [float(to_go[n, k]) for n in range(M) if turns.group_ids[n] == turns.group_ids[m] and turns.sampled[n, k]]
            want = float(to_go[m, k]) - sum(others) / len(others) if turns.sampled[m, k] else 0.0
            assert float(centered[m, k]) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_padding_and_the_order_of_rows_change_nothing(seed):
    batch = batch_of(*some_trajectories(seed))
    wide = batch.map_tokens(lambda x: torch.nn.functional.pad(x, (0, 3), value=-1 if x is batch.turn_ids else 0))
    order = torch.randperm(len(batch.traj_ids), generator=torch.Generator().manual_seed(seed))
    want = turns_of(batch)
    states = same_state(batch)
    for other in (wide, batch.rows(order)):
        got = turns_of(other)
        assert torch.equal(got.rewards, want.rewards) and torch.equal(got.sampled, want.sampled)
        again = same_state(other)  # the numbers may differ, not what is equal to what
        assert torch.equal(again == -1, states == -1)
        pairs = set(zip(states.flatten().tolist(), again.flatten().tolist(), strict=True))
        assert len(pairs) == len(states.unique()) == len(again.unique())


def test_equal_turns_that_were_added_up_differently_are_equal():
    batch = batch_of(play([([1], [5, 6, 7], 0.3, "")]), play([([1], [5, 6, 7], 0, "")], index=1))
    rewards = batch.rewards.clone()
    rewards[1, 1:] = 0.1
    turns = turns_of(replace(batch, rewards=rewards))
    assert turns.rewards[0, 0] == turns.rewards[1, 0]


def test_a_row_without_a_sampled_token_stands_after_the_last_turn():
    silent = play([([1], [5], 1.0, ""), ([2], [6], 2.0, ""), ([9, 9], [], 4.0, "rewrite")])
    assert turns_of(batch_of(silent)).rewards.tolist() == [[1.0, 6.0]]
    assert turns_of(empty_batch(0)).sampled.tolist() == [[False]] and same_state(empty_batch(0)).tolist() == [[-1]]
