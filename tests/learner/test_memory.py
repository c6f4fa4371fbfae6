"""What training costs and what is chosen from it: tables worked by hand, and that more memory never buys less."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlft.config import LearnerConfig
from rlft.learner.memory import (
    GIB,
    Shape,
    Training,
    activation_bytes,
    choose_budgets,
    choose_stage,
    explain,
    fits_whole,
    head_bytes,
    shape_of,
    state_bytes,
    training_of,
)

SMOL = Shape(30, 576, 1536, 576, 192, 49152, 134_515_008, 134_515_008)
ADAPTED = replace(SMOL, trained=4_884_480)
SEVEN = Shape(32, 4096, 11008, 4096, 4096, 32000, 6_738_415_616, 6_738_415_616)
F32, BF16 = Training(bf16=False, stage=0), Training(bf16=True, stage=1)
N = SMOL.parameters


@pytest.mark.parametrize(
    ("num_ranks", "bf16", "offload", "fits", "stage"),
    [
        (1, False, False, True, 0),
        (1, False, False, False, 0),
        (1, True, False, True, 1),
        (1, False, True, True, 1),
        (2, False, False, True, 2),
        (8, True, False, True, 2),
        (8, True, False, False, 3),
    ],
)
def test_the_stage_is_the_cheapest_that_keeps_the_optimizer_in_float32(num_ranks, bf16, offload, fits, stage):
    assert choose_stage(LearnerConfig(offload_optimizer=offload), num_ranks, bf16, fits) == stage
    assert choose_stage(LearnerConfig(zero_stage=2), num_ranks, bf16, fits) == 2  # the control: what the run file says stays


@pytest.mark.parametrize(
    ("shape", "training", "values", "width"),
    [
        (SMOL, F32, 30 * (6 * 576 + 2 * 576 + 2 * 192 + 4 * 1536), 4),
        (SMOL, BF16, 30 * (8 * 576 + 2 * 576 + 2 * 192 + 4 * 1536), 2),
        (ADAPTED, F32, 30 * (4 * 576 + 2 * 576 + 2 * 192 + 4 * 1536), 4),  # frozen norms keep less
        (SMOL, replace(F32, checkpointing=True), 30 * 576 + (6 * 576 + 2 * 576 + 2 * 192 + 4 * 1536), 4),
    ],
)
def test_a_tokens_activations_as_counted_by_hand(shape, training, values, width):
    assert activation_bytes(shape, training) == values * width


@pytest.mark.parametrize(
    ("shape", "training", "want"),
    [
        (SMOL, F32, 16 * N),
        (ADAPTED, F32, 4 * N + 12 * ADAPTED.trained),
        (SMOL, BF16, 2 * N + 12 * N + 2 * N + 2 * N),  # weights, optimizer, gradients, bucket
        (SMOL, replace(F32, stage=2, num_ranks=2), 4 * N + 6 * N + 2 * N + 4 * N),
        (SMOL, replace(F32, stage=2, num_ranks=2, offload=True), 4 * N + 2 * N + 4 * N),
        (SMOL, replace(F32, stage=3, num_ranks=2), 2 * N + 4 * N + 6 * N + 2 * N + 4 * N),
        (SEVEN, replace(BF16, stage=3, num_ranks=64), SEVEN.parameters / 4 + 4 * 200_000_000),  # buckets end at 200 M elements
        (SMOL, replace(F32, others=5.0), 16 * N + 5),
    ],
)
def test_the_state_of_a_rank_as_added_up_by_hand(shape, training, want):
    assert state_bytes(shape, training) == pytest.approx(want)


def test_a_head_holds_two_copies_of_its_logits_and_its_gradient_where_it_trains():
    assert head_bytes(ADAPTED, F32, 256) == 2 * 256 * 49152 * 4
    assert head_bytes(SMOL, F32, 256) == 2 * 256 * 49152 * 4 + 2 * 49152 * 576 * 4


@pytest.mark.parametrize(
    ("shape", "training", "memory", "gpu", "tokens", "chunk"),
    [
        (SMOL, F32, 12 * GIB, False, 1024, 341 // 256 * 256),
        (SMOL, BF16, 12 * GIB, False, 2048, 256),
        (SMOL, F32, 3.6 * GIB, False, 256, 256),  # of 0.94 GiB, half again as much as 1.27 MiB a token
        (replace(SMOL, layers=4, hidden=128, intermediate=512, query=128, key_value=128, vocabulary=64), F32, 12 * GIB, False, 8192, 4096),
        (SMOL, F32, 80 * GIB, True, 32768, 2560),
        (SEVEN, replace(BF16, stage=2, num_ranks=8), 80 * GIB, True, 8192, 4096),
    ],
)
def test_budgets_of_known_models(shape, training, memory, gpu, tokens, chunk):
    budgets = choose_budgets(shape, training, memory, gpu, LearnerConfig())
    assert budgets.chunk == chunk
    assert budgets.tokens == tokens
    held = budgets.state + budgets.activations + head_bytes(shape, training, budgets.chunk)
    assert held <= 0.9 * memory


def test_more_memory_never_buys_a_smaller_budget_and_the_run_files_own_stays():
    found = [choose_budgets(SMOL, F32, memory * GIB, True, LearnerConfig()).tokens for memory in (1, 3, 4, 8, 16, 80, 200)]
    assert found == sorted(found) and found[0] == 1 and found[-1] == 32768  # without room rows stand alone
    mine = choose_budgets(SMOL, F32, 1 * GIB, True, LearnerConfig(max_tokens_per_micro_batch=5000, logprob_chunk=7))
    assert (mine.tokens, mine.chunk) == (5000, 7)


def test_checkpointing_makes_room_for_longer_rows():
    eight = replace(BF16, stage=2, num_ranks=8)
    plain, saved = (choose_budgets(SEVEN, replace(eight, checkpointing=on), 80 * GIB, True, LearnerConfig()) for on in (False, True))
    assert saved.longest > 8 * plain.longest


def test_weights_are_spread_only_where_they_do_not_fit():
    config = LearnerConfig()
    assert training_of(config, SEVEN, 8, True, 80 * GIB).stage == 2
    assert training_of(config, SEVEN, 8, True, 24 * GIB).stage == 3
    assert not fits_whole(SEVEN, Training(True, 2, 8), 24 * GIB)
    assert training_of(LearnerConfig(gradient_checkpointing=True), SEVEN, 1, True, 80 * GIB) == Training(True, 1, 1, True)


def test_what_was_chosen_is_told_with_the_keys_to_write():
    config = LearnerConfig()
    budgets = choose_budgets(SMOL, F32, 12 * GIB, False, config)
    told = explain(budgets, F32, config, 12 * GIB, longest_row=4096)
    assert "zero_stage = 0, max_tokens_per_micro_batch = 1024, logprob_chunk = 256" in told["chosen"] and "12.0 GiB" in told["chosen"]
    assert "tight" not in told
    assert "logprob_chunk" not in explain(budgets, F32, config, 12 * GIB, head=False)["chosen"]
    given = LearnerConfig(zero_stage=0, max_tokens_per_micro_batch=512, logprob_chunk=64)
    assert explain(choose_budgets(SMOL, F32, 12 * GIB, False, given), F32, given, 12 * GIB) == {}  # the control: nothing was chosen


def test_a_row_without_room_is_told_with_a_way_out():
    config = LearnerConfig()
    budgets = choose_budgets(SMOL, F32, 4 * GIB, False, config)
    assert "gradient_checkpointing = true" in explain(budgets, F32, config, 4 * GIB, longest_row=budgets.longest + 1)["tight"]
    assert "tight" not in explain(budgets, F32, config, 4 * GIB, longest_row=budgets.longest)
    already = replace(F32, checkpointing=True)
    assert "more memory" in explain(budgets, already, config, 4 * GIB, longest_row=10**6)["tight"]


def test_a_models_shape_is_read_from_its_configuration():
    plain = SimpleNamespace(
        num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, vocab_size=96
    )
    assert shape_of(plain, 10, 5) == Shape(2, 64, 128, 64, 32, 96, 10, 5)
    wide = SimpleNamespace(**vars(plain), head_dim=32, num_experts_per_tok=3, moe_intermediate_size=16)
    assert shape_of(wide, 10, 5) == Shape(2, 64, 48, 128, 64, 96, 10, 5)
