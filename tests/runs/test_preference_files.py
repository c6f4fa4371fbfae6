"""Training on given pairs: a pair is a group that the algorithms take as they are; what does not apply is refused."""

import math
from dataclasses import replace

import pytest
import torch

import rlft
from rlft.algorithms.base import Algorithm
from rlft.algorithms.dpo import dpo, ipo
from rlft.algorithms.kto import kto
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.config import validate
from rlft.data.preferences import Preference, TokenPair
from rlft.errors import ConfigError, DataError
from rlft.learner.batching import collate
from rlft.runs.preferences import pair_rows
from rlft.types import Source

PAIR = TokenPair([7, 8], [1, 2, 9], [3, 9], 1.0)


def identity(x):
    return x


def collated(*pairs):
    rows = [row for n, pair in enumerate(pairs) for row in pair_rows(pair, f"pair {n}")]
    batch = collate(rows, 0)
    nothing = torch.zeros(batch.token_ids.shape)
    return replace(batch, old_logprobs=nothing, ref_logprobs=nothing)


def test_a_pair_is_a_group_of_two_answers_to_one_prompt():
    batch = collated(PAIR, replace(PAIR, gap=0.5))
    assert batch.token_ids.tolist() == [[7, 8, 1, 2, 9], [7, 8, 3, 9, 0]] * 2
    assert batch.loss_mask.tolist() == [[False, False, True, True, True], [False, False, True, True, False]] * 2
    assert batch.traj_ids.tolist() == [0, 1, 2, 3] and batch.group_ids.tolist() == [0, 0, 1, 1]
    assert batch.rewards.sum(-1).tolist() == [1.0, 0.0, 0.5, 0.0]
    assert batch.sources[batch.loss_mask].unique().tolist() == [Source.DEMONSTRATION]


def test_the_algorithms_pair_it_as_it_was_given():
    for algorithm in (dpo(), ipo(), dpo(margin_coef=1.0, suffix=True)):
        filled = algorithm.advantages(collated(PAIR, replace(PAIR, gap=0.25)), identity)
        assert filled.pair_ids.tolist() == [0, 0, 1, 1]
        assert [float(x[x != 0].unique()) for x in filled.advantages] == [0.5, -0.5, 0.125, -0.125]
    signs = kto().advantages(collated(PAIR), identity).advantages.sign()
    assert [float(x[x != 0].unique()) for x in signs] == [1.0, -1.0]


def test_a_pair_that_comes_twice_in_a_step_is_two_pairs():
    batch = dpo().advantages(collated(PAIR, PAIR), identity)
    weights = loss_weights(batch.loss_mask, batch.traj_ids, "sequence", identity)
    assert float(weighted_sum(dpo().loss(batch.ref_logprobs, batch)[0], weights)) == pytest.approx(math.log(2))
    assert batch.pair_ids.unique().tolist() == [0, 1]


REFUSED = [
    ({"algorithm": {"name": "grpo"}}, "algorithm.name: expected one of dpo, ipo, kto, or 'module:attribute', got 'grpo'"),
    ({}, "algorithm.name: expected one of dpo, ipo, kto"),
    ({"algorithm": {"name": "spin"}}, "algorithm.name: expected one of"),
    ({"algorithm": {"name": "dpo", "pairs": "ranked"}}, "algorithm.pairs does not apply to given pairs"),
    ({"algorithm": {"name": "ipo", "min_gap": 0.0}}, "algorithm.min_gap does not apply"),
    ({"algorithm": {"name": "kto", "threshold": 0.5}}, "algorithm.threshold does not apply"),
    ({"algorithm": {"name": "dpo", "beta": -1.0}}, "algorithm.beta: expected more than 0"),
    ({"algorithm": {"name": "dpo", "gamma": 1.0}}, "unknown option 'gamma'"),
    ({"algorithm": {"name": f"{__name__}:with_critic"}}, "needs values, which given pairs do not have"),
    ({"reward": {"exact_match": 1.0}}, r"\[reward\] does not apply to training on given pairs"),
    ({"rollout": {"group_size": 2}}, r"\[rollout\] does not apply"),
    ({"eval": {"data": {"source": "x.jsonl"}}}, r"\[eval\] does not apply"),
    ({"data": {"answer": "gold"}}, "data.answer does not apply to preference pairs"),
    ({"preferences": {"margin": "stars"}}, "algorithm.margin_coef: missing"),
]


def with_critic():
    return Algorithm("mine", lambda batch, reduce: batch, lambda logprobs, batch: (logprobs, {}), frozenset({"values"}))


@pytest.mark.parametrize(("table", "message"), REFUSED, ids=str)
def test_what_does_not_apply_is_refused_before_anything_starts(table, message, tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Sky? ", "chosen": "Blue.", "rejected": "Green.", "stars": 2}')
    algorithm = table.get("algorithm", {} if not table else {"name": "dpo"})
    data = {"source": "pairs.jsonl", **table.get("data", {})}
    config = validate({"model": tiny_model, **table, "data": data, **({"algorithm": algorithm} if algorithm else {})})
    with pytest.raises(ConfigError, match=message):
        rlft.dpo(config)
    assert not (tmp_path / "runs").exists()


def test_margins_of_given_pairs_count_by_margin_coef_alone(tiny_model):
    pair = Preference("1", ({"role": "user", "content": "?"},), *(({"role": "assistant", "content": x},) for x in "ab"), 2.0)
    config = validate({"model": tiny_model, "algorithm": {"name": "ipo"}})
    with pytest.raises(ConfigError, match="margin_coef: missing; the pairs have margins"):
        rlft.dpo(config, pairs=[pair])
    with pytest.raises(DataError, match=r"\[data\] an empty list of pairs"):
        rlft.dpo(config, pairs=[])
