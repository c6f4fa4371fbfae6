"""The ZeRO stage that a run gets where it names none."""

import pytest

from rlft.config import LearnerConfig
from rlft.learner.memory import choose_stage


@pytest.mark.parametrize(
    ("num_ranks", "bf16", "offload", "stage"),
    [(1, False, False, 0), (1, True, False, 1), (1, False, True, 1), (2, False, False, 2), (8, True, False, 2)],
)
def test_the_stage_is_the_cheapest_that_keeps_the_optimizer_in_float32(num_ranks, bf16, offload, stage):
    assert choose_stage(LearnerConfig(offload_optimizer=offload), num_ranks, bf16) == stage
    assert choose_stage(LearnerConfig(zero_stage=3), num_ranks, bf16) == 3  # the control: what the run file says stays
