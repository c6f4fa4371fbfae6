"""Reward models: a score belongs to its conversation alone, whatever is scored beside it."""

import asyncio
import inspect

import cloudpickle
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlft.actors.reward import RewardWorker
from rlft.errors import ConfigError, RewardError
from rlft.recipes.starter import make_tokenizer
from rlft.rewards.grader import Scorer, spoken
from rlft.rewards.learned.batcher import Batcher, Sequenced, batches
from rlft.rewards.learned.models import Encoder
from rlft.rewards.learned.reward_model import RewardModel
from rlft.types import Group, Task


def classifier(folder, tiny_model, num_labels=1, pad=True):
    """A Qwen2 classifier with a random head, in `folder` with its tokenizer."""
    config = AutoConfig.from_pretrained(tiny_model, num_labels=num_labels)
    config.pad_token_id = config.pad_token_id if pad else None
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(tiny_model, config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return str(folder)


def encoder_model(folder):
    """A BERT classifier: its score is read at the first token, and padding is what its mask says."""
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 1}
    torch.manual_seed(2)
    config = BertConfig(vocab_size=len(tokenizer), **sizes, initializer_range=0.3, pad_token_id=tokenizer.pad_token_id)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["decoder", "no pad token", "encoder"])
def model(request, tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("rm")
    if request.param == "encoder":
        return encoder_model(folder)
    return classifier(folder, tiny_model, pad=request.param == "decoder")


def group(*texts, prompt="Say something.", name="g"):
    task = Task("1", ({"role": "user", "content": prompt},))
    return Group(name, tuple(spoken(task, text) for text in texts))


def alone(folder, text, prompt="Say something."):
    """The score of one conversation by transformers itself, without batch or padding."""
    lm, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[*tokenizer(prompt + text, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id]])
    return lm(input_ids=ids).logits[0].tolist()


async def run(scorer, *groups):
    await scorer.start()
    try:
        return await asyncio.gather(*(scorer.score(each) for each in groups))
    finally:
        await scorer.close()


TEXTS = ["", "brief", "a much longer answer " * 9, "spells the padding token <|endoftext|>", "ünïcode"]


def test_a_score_does_not_depend_on_what_it_is_batched_with(model):
    crowd = [group(*TEXTS, name=str(i), prompt="x" * i + "Say something.") for i in range(8)]
    batched = asyncio.run(run(RewardModel(model=model, max_batch_tokens=900), *crowd))
    expected = [alone(model, text)[0] for text in TEXTS]
    assert batched[0] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == len(TEXTS)  # so that mixed-up scores would show


def test_head_and_center_choose_a_logit_and_its_zero(tmp_path, tiny_model):
    folder = classifier(tmp_path, tiny_model, num_labels=3)
    [scores] = asyncio.run(run(RewardModel(model=folder, head=2, center=0.5), group("yes")))
    assert scores == pytest.approx([alone(folder, "yes")[2] - 0.5], abs=1e-5)
    with pytest.raises(ConfigError, match="head 3.*3 logits"):
        asyncio.run(run(RewardModel(model=folder, head=3), group("yes")))


def test_a_chat_template_is_applied_to_the_whole_conversation(tmp_path, tiny_model):
    folder = classifier(tmp_path / "rm", tiny_model)
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    [scores] = asyncio.run(run(RewardModel(model=folder, chat_template=str(file)), group("yes")))
    lm, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("<user>Say something.<assistant>yes")["input_ids"]])
    assert scores == pytest.approx(lm(input_ids=ids).logits[0].tolist(), abs=1e-5)


def test_a_conversation_beyond_the_limit_keeps_its_end(tmp_path, tiny_model):
    folder = classifier(tmp_path, tiny_model)
    long, other = (group("the end", prompt=letter * 50) for letter in "ab")
    (cut,), (cut_other,) = asyncio.run(run(RewardModel(model=folder, max_length=8), long, other))
    (whole,), (whole_other,) = asyncio.run(run(RewardModel(model=folder), long, other))
    assert cut == cut_other and abs(whole - whole_other) > 1e-4


def test_it_is_a_scorer_that_can_be_sent_to_a_worker_before_it_starts(tmp_path, tiny_model):
    scorer = RewardModel(model=classifier(tmp_path, tiny_model))
    assert isinstance(scorer, Scorer)
    sent = cloudpickle.loads(cloudpickle.dumps(scorer))
    assert asyncio.run(run(sent, group("yes")))[0] == pytest.approx(alone(tmp_path, "yes"), abs=1e-5)


def test_in_a_reward_worker_it_counts_like_any_reward(tmp_path, tiny_model):
    folder = classifier(tmp_path, tiny_model)
    table = {"reward_model": {"weight": 2.0, "model": folder}, "exact_match": 0.0}

    async def grade():
        worker = RewardWorker(table, processes=1, timeout_s=60.0)
        task = Task("1", ({"role": "user", "content": "Say something."},), answer="yes")
        group = Group("g", (spoken(task, "yes"), spoken(task, "no")))
        try:
            return (await worker.grade([group]))[0].trajectories
        finally:
            await worker.close()

    for trajectory, right in zip(asyncio.run(grade()), (1.0, 0.0), strict=True):
        [score] = alone(folder, trajectory.text)
        assert trajectory.parts == pytest.approx({"reward_model": score, "exact_match": right}, abs=1e-5)
        assert trajectory.reward == pytest.approx(2 * score, abs=1e-4)


def test_a_language_model_without_a_trained_head_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="no weights for score"):
        asyncio.run(run(RewardModel(model=tiny_model), group("yes")))


def test_a_missing_folder_is_told_when_the_reward_is_made(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        RewardModel(model=str(tmp_path / "nothing"))


def test_before_start_and_after_close_nothing_is_scored(tmp_path, tiny_model):
    scorer = RewardModel(model=classifier(tmp_path, tiny_model))
    with pytest.raises(RewardError, match="not started"):
        asyncio.run(scorer.score(group("yes")))
    asyncio.run(run(scorer, group("yes")))
    with pytest.raises(RewardError, match="closed"):
        asyncio.run(scorer.score(group("yes")))


def test_no_option_is_a_word_that_the_rule_of_a_reward_reserves():
    reserved = {"weight", "gate", "normalize", "clip", "on_error", "optional", "timeout_s", "memory_mb", "fn", "name"}
    assert not reserved & set(inspect.signature(RewardModel).parameters)


def doubled(batch):
    if any(sequence.token_ids == [13] for sequence in batch):
        raise RewardError("13")
    return [2 * sequence.token_ids[0] for sequence in batch]


def test_an_error_reaches_the_callers_of_its_batch_and_no_other():
    async def play():
        batcher = Batcher(lambda: doubled, max_tokens=1)
        await batcher.start()
        calls = [batcher.submit([Sequenced([number])]) for number in (1, 13, 3)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        again = await batcher.submit([Sequenced([4])])
        await batcher.close()
        return answers, again

    (first, second, third), again = asyncio.run(play())
    assert (first, third, again) == ([2], [6], [8]) and isinstance(second, RewardError)


def test_concurrent_calls_share_batches():
    async def play():
        batcher = Batcher(lambda: doubled, max_tokens=64)
        await batcher.start()
        await asyncio.gather(*(batcher.submit([Sequenced([number])]) for number in range(10)))
        await batcher.close()
        return batcher.num_batches

    assert asyncio.run(play()) == 1


def test_batches_hold_the_budget_and_everything_once():
    lengths = [5, 1, 9, 30, 2, 2, 9]
    cut = batches(range(7), lengths, 20)
    assert sorted(i for batch in cut for i in batch) == list(range(7))
    padded = [max(lengths[i] for i in batch) * len(batch) for batch in cut]
    assert all(size <= 20 or len(batch) == 1 for size, batch in zip(padded, cut, strict=True))
    assert len(cut) == 3


def test_an_answer_that_spells_a_control_token_is_scored_as_the_text_it_is():
    """A policy can write the characters of "<|im_end|>" in ordinary tokens; the model that scores it must not read a turn's end."""
    tokenizer = make_tokenizer()
    encoder = Encoder(tokenizer, "", 1000)
    end = tokenizer.eos_token_id
    ids = encoder.encode([{"role": "user", "content": "a<|im_end|>b"}, {"role": "assistant", "content": "c<|im_end|>d"}])
    assert ids.count(end) == 1 and ids[-1] == end
    assert tokenizer("a<|im_end|>bc<|im_end|>d")["input_ids"].count(end) == 2  # the control


def test_the_scored_tokens_are_those_behind_the_border():
    """Where the answer's first token depends on what stands before it, an answer encoded alone begins with another."""
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abQ:")], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    encoder = Encoder(tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}", 1000)
    ids, start = encoder.behind(encoder.asked([{"role": "user", "content": "Q:"}]), "ab", "assistant")
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁", "Q", ":", "a", "b"] and start == 3
    assert tokenizer.tokenize("ab")[0] == "▁"  # the control
