import pytest

from rlft.errors import ConfigError
from rlft.rollout.renderer import Renderer

USER = {"role": "user", "content": "What is 1+1?"}
AGAIN = {"role": "user", "content": "Are you sure?"}


def make(tokenizer):
    return Renderer(tokenizer, [tokenizer.eos_token_id])


def whole(tokenizer, messages):
    """The oracle: the template applied to a whole conversation at once."""
    text = tokenizer.apply_chat_template(messages, chat_template=make(tokenizer).template, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_appending_turn_by_turn_equals_rendering_the_whole_conversation(tokenizer):
    renderer = make(tokenizer)
    answers = ["2", "Yes: 2"]
    ids = renderer.render([USER])
    conversation = [USER]
    for answer in answers:
        sampled = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = ids + sampled + renderer.extend(sampled, [AGAIN])
        conversation += [{"role": "assistant", "content": answer}, AGAIN]
    assert ids == whole(tokenizer, conversation)


def test_an_answer_that_was_cut_is_closed_by_the_template(tokenizer):
    renderer = make(tokenizer)
    cut = tokenizer("2", add_special_tokens=False)["input_ids"]
    ids = renderer.render([USER]) + cut + renderer.extend(cut, [AGAIN])
    assert ids == whole(tokenizer, [USER, {"role": "assistant", "content": "2"}, AGAIN])


def test_sampled_ids_that_do_not_survive_encoding_are_carried_as_they_are(tokenizer):
    """Decoding and encoding again would change these bytes: they are no valid UTF-8."""
    renderer = make(tokenizer)
    sampled = [*[tokenizer.convert_tokens_to_ids("ÿ")] * 3, tokenizer.eos_token_id]  # the byte 255, three times
    text = renderer.parse(sampled)["content"]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] != sampled[:-1]  # the control: re-encoding loses them
    extended = renderer.render([USER]) + sampled + renderer.extend(sampled, [AGAIN])
    assert extended[len(renderer.render([USER])) :][: len(sampled)] == sampled


def test_a_demonstrated_answer_ends_as_a_sampled_one_would(tokenizer):
    target = make(tokenizer).target("42")
    assert target == [*tokenizer("42", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_a_template_that_drops_the_answer_is_refused(tokenizer):
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id], "{{ messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="does not render the assistant's content"):
        renderer.extend([5], [AGAIN])


def test_parsing_leaves_special_tokens_out(tokenizer):
    ids = [*tokenizer("ok", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert make(tokenizer).parse(ids) == {"role": "assistant", "content": "ok"}
