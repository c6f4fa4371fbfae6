"""What a run draws: every task once an epoch, the same again after a resume, and what pass rates change of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.config import DataConfig
from rlft.data.ledger import Ledger, Record
from rlft.data.stream import TaskStream
from rlft.errors import DataError
from rlft.types import Task


def tasks_of(n):
    return [Task(str(i), ()) for i in range(n)]


@given(n=st.integers(1, 12), position=st.integers(0, 40), seed=st.integers(-5, 2**70), shuffle=st.booleans())
def test_a_stream_made_at_a_position_continues_exactly_there(n, position, seed, shuffle):
    whole = TaskStream(tasks_of(n), seed, DataConfig(shuffle=shuffle))
    whole.take(position)
    resumed = TaskStream(tasks_of(n), seed, DataConfig(shuffle=shuffle), state={"position": position})
    assert resumed.take(30) == whole.take(30)
    assert resumed.position == whole.position == position + 30
    assert resumed.epoch == (position + 30) // n


@given(n=st.integers(1, 30), epochs=st.integers(1, 4), seed=st.integers(0, 99), shuffle=st.booleans())
def test_every_epoch_holds_every_task_once(n, epochs, seed, shuffle):
    stream = TaskStream(tasks_of(n), seed, DataConfig(shuffle=shuffle))
    for epoch in range(epochs):
        assert stream.epoch == epoch
        assert sorted(int(t.id) for t in stream.take(n)) == list(range(n))


def test_order_depends_on_seed_and_epoch_only_when_shuffled():
    def order(seed, epoch, shuffle=True):
        return [t.id for t in TaskStream(tasks_of(50), seed, DataConfig(shuffle=shuffle), state={"position": 50 * epoch}).take(50)]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert order(1, 3, shuffle=False) == [str(i) for i in range(50)]


def test_the_order_of_a_seed_never_changes():
    assert [int(t.id) for t in TaskStream(tasks_of(8), seed=7).take(16)] == [6, 3, 4, 0, 2, 7, 5, 1, 1, 3, 2, 7, 4, 5, 0, 6]


@pytest.mark.parametrize(("tasks", "position"), [([], 0), (tasks_of(2), -1)])
def test_a_stream_refuses_no_tasks_and_a_negative_position(tasks, position):
    with pytest.raises(DataError):
        TaskStream(tasks, state={"position": position})


def ledger(**passes):
    """Tasks t0, t1, ... with that many passes of 8 attempts."""
    return Ledger({name[1:]: Record(8, count, 1) for name, count in passes.items()})


def ids(stream, number):
    return [task.id for task in stream.take(number)]


def test_tasks_outside_the_limits_are_passed_over_once_they_were_tried_often_enough():
    config = DataConfig(shuffle=False, min_pass_rate=0.1, max_pass_rate=0.9)
    tried = ledger(t0=0, t1=4, t2=8)  # task 3 was never tried
    stream = TaskStream(tasks_of(4), 0, config, tried)
    assert ids(stream, 4) == ["1", "3", "1", "3"] and stream.position == 8
    assert ids(TaskStream(tasks_of(4), 0, config.model_copy(update={"min_attempts": 9}), tried), 4) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("curriculum", ["none", "easy_first", "learnable"])
def test_a_stream_without_a_task_left_says_so_and_does_not_search_forever(curriculum):
    config = DataConfig(min_pass_rate=0.1, max_pass_rate=0.9, curriculum=curriculum)
    with pytest.raises(DataError, match="no task is left: of 3, 2 have a pass rate below data.min_pass_rate 0.1 and 1 above"):
        TaskStream(tasks_of(3), 0, config, ledger(t0=0, t1=0, t2=8)).take(1)


def test_easy_tasks_come_first_and_those_never_tried_count_as_half():
    config = DataConfig(curriculum="easy_first", shuffle=False)
    assert ids(TaskStream(tasks_of(4), 0, config, ledger(t0=0, t1=8, t2=5)), 4) == ["1", "2", "3", "0"]


def test_learnable_tasks_are_drawn_by_p_times_1_less_p():
    rates = ledger(t0=0, t1=4, t2=8)  # expected 0.1, 0.5, 0.9: weights 0.09, 0.25, 0.09
    drawn = [name for epoch in range(400) for name in ids(TaskStream(tasks_of(3), epoch, DataConfig(curriculum="learnable"), rates), 3)]
    shares = [drawn.count(str(i)) / len(drawn) for i in range(3)]
    assert shares == pytest.approx([0.09 / 0.43, 0.25 / 0.43, 0.09 / 0.43], abs=0.05)


@given(position=st.integers(0, 20), curriculum=st.sampled_from(["none", "easy_first", "learnable"]))
def test_an_epoch_that_has_begun_keeps_its_order_over_a_resume_though_pass_rates_moved(position, curriculum):
    rates, config = Ledger({"0": Record(8, 8, 1)}), DataConfig(curriculum=curriculum)
    whole = TaskStream(tasks_of(6), 3, config, rates)
    whole.take(position)
    state = whole.state()
    resumed = TaskStream(tasks_of(6), 3, config, Ledger({"5": Record(8, 8, 1)} if position % 6 else {"0": Record(8, 8, 1)}), state=state)
    left = 6 - position % 6
    assert ids(resumed, left) == ids(whole, left)


def test_a_state_can_be_had_of_a_moment_before_tasks_that_were_drawn_ahead():
    stream = TaskStream(tasks_of(5), 1)
    drawn = ids(stream, 12)
    assert ids(TaskStream(tasks_of(5), 1, state=stream.state(4)), 8) == drawn[4:]
    assert ids(TaskStream(tasks_of(5), 1, state=stream.state()), 8) != drawn[4:]


def test_an_order_of_other_data_is_refused():
    state = TaskStream(tasks_of(5), 1, DataConfig(curriculum="easy_first")).state()
    with pytest.raises(DataError, match="order has 5 tasks, and the data has 6 now"):
        TaskStream(tasks_of(6), 1, DataConfig(curriculum="easy_first"), state=state)


def test_a_share_of_the_places_begins_with_a_first_attempt_the_same_after_a_resume():
    attempts = {str(i): f"said {i}" for i in range(49)}  # the model said nothing to task 49
    stream = TaskStream(tasks_of(50), 5, first_attempts=attempts, share=0.5)
    drawn = stream.take(500)
    begun = [task for task in drawn if task.first_attempt]
    assert 200 < len(begun) < 300 and all(task.first_attempt == f"said {task.id}" for task in begun)
    assert TaskStream(tasks_of(50), 5, first_attempts=attempts, share=0.5, state=stream.state(200)).take(300) == drawn[200:]
    assert not any(task.first_attempt for task in TaskStream(tasks_of(50), 5, first_attempts=attempts).take(100))
