"""What is found before a run: the model's context and vocabulary, settings that cannot be saved, a disk without room."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config

from rlft.config import RolloutConfig, StageConfig, validate
from rlft.errors import ConfigError
from rlft.learner.policy import save_model
from rlft.rewards.grader import EngineSize
from rlft.rewards.learned.judge import Judge
from rlft.rollout.renderer import load_renderer
from rlft.runs.limits import context_length, positions, stated_positions, tokens_without_embedding, with_context
from rlft.runs.preflight import check_chat, check_savable, check_vocabulary, num_parameters, num_saves, room_for
from rlft.runs.start import judge_models, judge_rollout


@pytest.fixture
def model(tmp_path, tiny_model):
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(file, **values):
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **values}))


@pytest.mark.parametrize(
    ("known", "asked", "length"), [(1024, 0, 1024), (1024, 64, 64), (1024, 1024, 1024), (8192, 0, 4096), (8192, 8192, 8192)]
)
def test_a_context_is_what_is_asked_for_or_what_the_model_has_up_to_the_usual(model, known, asked, length):
    change(model / "config.json", max_position_embeddings=known)
    assert context_length(str(model), asked, "max_model_len") == length


def test_a_context_longer_than_the_model_is_refused(model):
    with pytest.raises(ConfigError, match=r"rollout.max_model_len 1025: model .* has 1024 positions; set at most that"):
        context_length(str(model), 1025, "rollout.max_model_len")


def test_a_stretched_rotary_embedding_counts_as_its_factor_says():
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    assert positions(Qwen2Config(max_position_embeddings=2048, rope_parameters=linear)) == 8192
    plain = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 512}
    assert positions(Qwen2Config(max_position_embeddings=2048, rope_parameters=plain)) == 2048  # counted already


@pytest.mark.parametrize(
    ("changes", "stated"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_position_embeddings": 2048, "n_positions": 512}, 512),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, None),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, None),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_what_config_json_states_alone_is_what_transformers_finds_or_not_known_yet(model, changes, stated):
    change(model / "config.json", **changes)
    assert stated_positions(str(model)) == stated
    if stated:
        assert positions(AutoConfig.from_pretrained(model)) == stated


def test_a_model_for_chat_without_a_chat_template_is_told(model):
    def told(name):
        return check_chat(name, load_renderer(str(model)))

    assert told("owner/Base-7B") == [] and told("owner/Italian-7B") == []  # the controls: nothing says that it was made for chat
    (warning,) = told("owner/Small-1B-Instruct")
    assert "has no chat template, though it was made for chat (its name says so)" in warning and "Set chat_template" in warning
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.save_pretrained(model)
    assert "its tokenizer has '<|im_start|>'" in told("owner/Base-7B")[0]
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{{ eos_token }}{% endfor %}<|im_start|>"
    tokenizer.save_pretrained(model)
    assert told("owner/Small-1B-Instruct") == []


def test_each_stages_context_is_checked_and_the_runs_is_resolved(model):
    table = {"model": str(model), "rollout": {"max_tokens": 8}}
    assert with_context(validate({**table, "steps": 1})).rollout.max_model_len == 1024
    staged = validate({**table, "stages": [{"steps": 1}, {"steps": 1, "rollout": {"max_model_len": 2048}}]})
    with pytest.raises(ConfigError, match=r"stages\[1\].rollout.max_model_len 2048: model .* has 1024 positions"):
        with_context(staged)


def test_tokens_beyond_the_embedding_are_told_and_refused_where_they_end_an_answer(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert check_vocabulary(str(model), tokenizer, [1]) == []  # the control
    first = AutoConfig.from_pretrained(model).vocab_size
    tokenizer.add_tokens([f"<extra-{i}>" for i in range(first - len(tokenizer) + 2)], special_tokens=True)
    assert len(tokens_without_embedding(tokenizer, str(model))) == 2
    (told,) = check_vocabulary(str(model), tokenizer, [1])
    assert "2 of its tokens ('<extra-" in told and "a prompt that holds one cannot be computed" in told
    with pytest.raises(ConfigError, match=rf"beyond the model's embedding, and {first} ends an answer"):
        check_vocabulary(str(model), tokenizer, [1, first])


def test_settings_that_load_are_saved_as_they_are_where_transformers_refuses(model, tmp_path):
    change(model / "generation_config.json", temperature=0.7, top_p=0.9, eos_token_id=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model)
    check_savable(str(model), tokenizer)
    save_model(tmp_path / "saved", lm.state_dict(), lm, tokenizer)
    before, after = GenerationConfig.from_pretrained(model), GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (after.temperature, after.top_p, after.eos_token_id) == (0.7, 0.9, 1) == (before.temperature, before.top_p, before.eos_token_id)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.get_input_embeddings().weight, lm.get_input_embeddings().weight)
    with pytest.raises(ValueError, match="Fix these issues"):  # the control
        lm.generation_config.save_pretrained(tmp_path / "refused")


def test_a_tokenizer_that_cannot_be_saved_is_refused_at_once(model):
    class Broken:
        def save_pretrained(self, folder):
            raise TypeError("Object of type set is not JSON serializable")

    with pytest.raises(ConfigError, match="cannot be saved in a checkpoint: Object of type set"):
        check_savable(str(model), Broken())


def test_parameters_are_counted_from_the_files_headers(model):
    lm = AutoModelForCausalLM.from_pretrained(model)
    assert num_parameters(str(model)) == sum(p.numel() for p in lm.parameters())
    assert num_parameters("owner/on-the-hub") == 0


@pytest.mark.parametrize(
    ("stages", "every", "saves"), [((10,), 0, 1), ((10,), 5, 2), ((10,), 4, 3), ((10, 10), 0, 2), ((3, 4), 2, 5), ((5, 5), 5, 2)]
)
def test_checkpoints_are_counted_over_stages(stages, every, saves):
    tracking = {"save_every": every}
    config = validate({"model": "m", "tracking": tracking, "stages": [StageConfig(steps=n).model_dump() for n in stages]})
    assert num_saves([config.of_stage(i) for i in range(len(stages))]) == saves


def test_a_disk_without_room_is_refused_for_the_first_checkpoint_and_told_for_the_last():
    assert room_for(10, 30, 3, 90, "runs/a") == []  # 3 times 10, and the state twice while the next is written
    (told,) = room_for(10 * 10**9, 30 * 10**9, 3, 89 * 10**9, "runs/a")
    assert "3 checkpoints take about 90 GB (10 GB of weights and 30 GB of optimizer state" in told and "has 89 GB left" in told
    with pytest.raises(ConfigError, match=r"a checkpoint takes about 40 GB .* the disk of run_dir 'runs/a' has 39 GB left"):
        room_for(10 * 10**9, 30 * 10**9, 3, 39 * 10**9, "runs/a")


def test_a_judges_engine_has_its_own_size_and_not_the_policys(model):
    policy = RolloutConfig(max_model_len=256, max_num_seqs=8, memory=0.2, max_tokens=8, dtype="bfloat16")
    judging = judge_rollout(policy, str(model), EngineSize(memory=2.0))
    assert (judging.max_model_len, judging.max_num_seqs, judging.memory, judging.dtype) == (1024, 64, 2.0, "bfloat16")
    with pytest.raises(ConfigError, match=r"the judge's max_model_len 2048: model .* has 1024 positions"):
        judge_rollout(policy, str(model), EngineSize(max_model_len=2048))


def test_judges_of_one_model_share_an_engine_that_is_large_enough_for_both():
    judges = [
        Judge(models=["a", "b"], max_model_len=512, memory=2.0),
        Judge(model="b", max_model_len=900, max_num_seqs=99),
        Judge(model="c", max_model_len=900),
        Judge(model="c"),  # as much as the model usually has
        Judge(model="policy"),
    ]
    sizes = judge_models(SimpleNamespace(scorers=dict(enumerate(judges))))
    assert sizes == {"a": EngineSize(512, 64, 2.0), "b": EngineSize(900, 99, 2.0), "c": EngineSize()}
