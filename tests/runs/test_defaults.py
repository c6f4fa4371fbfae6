"""The learning rate that a run file leaves open: by kind of run, by adapters, in every stage."""

import pytest

from rlft.config import LearnerConfig, learning_rate, validate
from rlft.runs.defaults import with_rates


@pytest.mark.parametrize(
    ("kind", "full", "adapters"), [("train", 1e-6, 1e-5), ("sft", 2e-5, 2e-4), ("dpo", 1e-6, 1e-5), ("train-rm", 1e-5, 1e-4)]
)
def test_each_kind_of_run_has_a_rate_and_adapters_a_larger_one(kind, full, adapters):
    assert learning_rate(LearnerConfig(), kind) == full
    assert learning_rate(LearnerConfig(lora_rank=8), kind) == pytest.approx(adapters)
    assert learning_rate(LearnerConfig(lora_rank=8, lr=3e-3), kind) == 3e-3  # the control: what the run file says stays


def test_the_rate_stands_in_the_resolved_run_file_and_is_resolved_once():
    config = with_rates(validate({"model": "m"}), "sft")
    assert "lr = 2e-05" in config.to_toml()
    assert with_rates(config, "train") == config


def test_a_stage_has_the_rate_of_what_it_trains():
    table = {"model": "m", "stages": [{"steps": 1}, {"steps": 1, "learner": {"lora_rank": 4}}, {"steps": 1, "learner": {"lr": 0.5}}]}
    config = with_rates(validate(table), "train")
    rates = [config.of_stage(i).learner.lr for i in range(3)]
    assert rates == [1e-6, pytest.approx(1e-5), 0.5]
    given = with_rates(validate({**table, "learner": {"lr": 0.25}}), "train")
    assert [given.of_stage(i).learner.lr for i in range(3)] == [0.25, 0.25, 0.5]  # the control: the run's own rate holds for all
    assert with_rates(config, "train") == config
