"""The policy's log-probabilities against a plain forward pass, and what they cost in memory."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlft.errors import ConfigError
from rlft.learner.policy import PolicyModel, VocabularyHead, adapters_off, exports, load_policy

LENGTHS = (9, 4, 6)  # T = 9


def save_model(folder, tied=True):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=96, tie_word_embeddings=tied, attention_dropout=0.2, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(0, 96, (3, 9), generator=generator)
    real = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    return torch.where(real, token_ids, 0), real & (torch.rand(3, 9, generator=generator) < 0.7)


def oracle(model, token_ids, temperature):
    """Row by row, without padding: log-probabilities and entropies from transformers' own logits."""
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    logprobs, entropy = torch.zeros(token_ids.shape), torch.zeros(token_ids.shape)
    for b, length in enumerate(LENGTHS):
        distribution = (lm(token_ids[b : b + 1, :length]).logits[0] / temperature).log_softmax(-1)
        for t in range(1, length):
            logprobs[b, t] = distribution[t - 1, token_ids[b, t]]
            entropy[b, t] = -(distribution[t - 1].exp() * distribution[t - 1]).sum()
    return lm, logprobs, entropy


@pytest.mark.parametrize("chunk", [1, 4, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropy_equal_the_plain_forward_on_the_mask_and_are_zero_off_it(model, batch, chunk, temperature):
    token_ids, mask = batch
    logprobs, entropy, values = load_policy(model, dtype=torch.float32, logprob_chunk=chunk)(token_ids, mask, temperature)
    _, want, want_entropy = oracle(model, token_ids, temperature)
    scored = mask.clone()
    scored[:, 0] = False
    torch.testing.assert_close(logprobs, torch.where(scored, want, 0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, torch.where(scored, want_entropy, 0.0), atol=1e-5, rtol=0)
    assert values is None


def test_one_token_further_is_another_number(model, batch):
    token_ids, mask = batch
    logprobs, *_ = load_policy(model, dtype=torch.float32)(token_ids, mask, 1.0)
    _, want, _ = oracle(model, token_ids, 1.0)
    assert (logprobs - torch.where(mask, want.roll(1, 1), 0.0)).abs().max() > 0.01


@pytest.mark.parametrize("of", ["entropy", "both"])
def test_the_entropys_gradient_equals_that_of_the_plain_forward(model, batch, of):
    token_ids, mask = batch
    mask[:, 0] = False
    direction = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    policy = load_policy(model, dtype=torch.float32, logprob_chunk=3)
    logprobs, entropy, _ = policy(token_ids, mask, 0.7)
    lm, want, want_entropy = oracle(model, token_ids, 0.7)
    both = of == "both"
    ((entropy + logprobs if both else entropy) * direction).sum().backward()
    (torch.where(mask, want_entropy + want if both else want_entropy, 0.0) * direction).sum().backward()
    wanted = dict(lm.named_parameters())
    for name, parameter in policy.lm.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=2e-5, rtol=1e-4, msg=name)


def test_values_are_read_from_the_state_before_the_token_and_train_the_body_only_when_told(model, batch):
    token_ids, mask = batch
    policy = load_policy(model, dtype=torch.float32, value_head=True)
    assert not policy(token_ids, mask, 1.0)[2].any()  # it starts at 0
    torch.nn.init.normal_(policy.value_head.projection.weight, generator=torch.Generator().manual_seed(3))
    values = policy(token_ids, mask, 1.0)[2]
    changed = token_ids.clone()
    b, t = next((b, t) for b, t in mask.nonzero().tolist() if t > 0)
    changed[b, t] = (changed[b, t] + 1) % 96
    assert policy(changed, mask, 1.0)[2][b, t] == values[b, t] != 0  # the token itself is not seen
    changed[b, t - 1] = (changed[b, t - 1] + 1) % 96
    assert policy(changed, mask, 1.0)[2][b, t] != values[b, t]
    for train_body in (True, False):
        policy.zero_grad()
        policy(token_ids, mask, 1.0, train_body)[2].sum().backward()
        touched = any(p.grad is not None and p.grad.any() for p in policy.lm.base_model.parameters())
        assert touched == train_body
        assert policy.value_head.projection.weight.grad.any()


@pytest.mark.parametrize("chunk", [3, 4096])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_the_plain_forward(model, batch, chunk, checkpointing):
    token_ids, mask = batch
    mask[:, 0] = False
    direction = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    policy = load_policy(model, dtype=torch.float32, logprob_chunk=chunk, gradient_checkpointing=checkpointing)
    logprobs, *_ = policy(token_ids, mask, 0.7)
    (logprobs * direction).sum().backward()
    lm, want, _ = oracle(model, token_ids, 0.7)
    (torch.where(mask, want, 0.0) * direction).sum().backward()
    wanted = dict(lm.named_parameters())
    for name, parameter in policy.lm.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=2e-5, rtol=1e-4)


def test_an_empty_mask_gives_zeros_whose_gradient_reaches_every_parameter(model, batch):
    token_ids, mask = batch
    policy = load_policy(model, dtype=torch.float32)
    logprobs, entropy, _ = policy(token_ids, torch.zeros_like(mask), 1.0)
    assert not logprobs.any() and not entropy.any()
    logprobs.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


def test_log_softmax_is_float32_in_bfloat16_models():
    torch.manual_seed(0)
    head = VocabularyHead(torch.nn.Linear(8, 50, bias=True).bfloat16(), chunk=2)
    hidden, targets = torch.randn(5, 8).bfloat16().requires_grad_(), torch.arange(5)
    logprobs, _ = head(hidden, targets, 1.0)
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    want = logits.float().log_softmax(-1)[range(5), targets]
    assert logprobs.dtype == torch.float32 and torch.equal(logprobs, want)
    assert not torch.equal(logprobs, logits.log_softmax(-1)[range(5), targets].float())
    logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == head.bias.grad.dtype == torch.bfloat16


def test_the_heads_backward_is_the_numerical_derivative_of_its_forward():
    torch.manual_seed(0)
    head = VocabularyHead(torch.nn.Linear(6, 11, bias=True), chunk=2)
    hidden, targets = torch.randn(5, 6), torch.tensor([0, 10, 3, 3, 7])
    inputs = [hidden.requires_grad_(), head.weight, head.bias]
    for x in inputs:
        x.grad = None
    direction = torch.randn(5)
    (head(hidden, targets, 1.7)[0] * direction).sum().backward()
    chunked = [x.grad.clone() for x in inputs]
    for x in inputs:
        x.grad = None
    plain = (torch.nn.functional.linear(hidden, head.weight, head.bias) / 1.7).log_softmax(-1)[range(5), targets]
    (plain * direction).sum().backward()
    for got, x in zip(chunked, inputs, strict=True):
        torch.testing.assert_close(got, x.grad, atol=1e-6, rtol=1e-5)


PEAK = """
import pathlib, re, sys, torch
from rlft.learner.policy import VocabularyHead
def peak():  # of this program alone: what getrusage tells begins with the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
tokens, vocabulary, hidden = 3000, 50_000, 32
head = VocabularyHead(torch.nn.Linear(hidden, vocabulary, bias=False), chunk=int(sys.argv[1]))
x, targets = torch.randn(tokens, hidden, requires_grad=True), torch.randint(0, vocabulary, (tokens,))
head(x[:8], targets[:8], 1.0)[0].sum().backward()
before = peak()
head(x, targets, 1.0)[0].sum().backward()
print((peak() - before) * 1024 / (tokens * vocabulary * 4))
"""


@pytest.mark.parametrize(("chunk", "fits"), [(128, True), (3000, False)])
def test_peak_memory_follows_the_chunk_not_the_batch(chunk, fits):
    run = subprocess.run([sys.executable, "-c", PEAK, str(chunk)], capture_output=True, text=True, check=True)
    share = float(run.stdout)  # of one [tokens, vocabulary] float32 tensor, 0.6 GB
    assert share < 0.5 if fits else share > 1.5


def test_adapters_start_as_the_base_model_and_only_they_train(model, batch):
    token_ids, mask = batch
    base, adapted = load_policy(model, dtype=torch.float32), load_policy(model, dtype=torch.float32, lora_rank=4)
    torch.testing.assert_close(adapted(token_ids, mask)[0], base(token_ids, mask)[0])
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)


def _with_moved_adapters(model) -> PolicyModel:
    policy = load_policy(model, dtype=torch.float32, lora_rank=4, lora_alpha=8.0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return policy


def test_switched_off_adapters_give_the_base_model_and_come_back(model, batch):
    token_ids, mask = batch
    policy = _with_moved_adapters(model)
    trained = [p.requires_grad for p in policy.parameters()]
    moved = policy(token_ids, mask)[0].detach()
    with adapters_off(policy):
        off = policy(token_ids, mask)[0].detach()
    torch.testing.assert_close(off, load_policy(model, dtype=torch.float32)(token_ids, mask)[0].detach())
    assert (moved - off).abs().max() > 0.01
    assert torch.equal(policy(token_ids, mask)[0].detach(), moved)
    assert [p.requires_grad for p in policy.parameters()] == trained


@pytest.mark.parametrize("lora", [False, True])
def test_exports_are_the_state_dict_under_hugging_face_names(model, batch, lora):
    token_ids, _ = batch
    policy = _with_moved_adapters(model) if lora else load_policy(model, dtype=torch.float32)
    weights = {export.name: export.read() for export in exports(policy)}
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert list(weights) == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(weights, strict=False)
    want = plain.eval()(token_ids).logits.log_softmax(-1)[:, :-1].gather(2, token_ids[:, 1:, None]).squeeze(2)
    real = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    got = policy(token_ids, real)[0][:, 1:]
    torch.testing.assert_close(got, torch.where(real[:, 1:], want, 0.0), atol=1e-5, rtol=0)


def test_a_missing_model_says_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be loaded.*Give a folder that holds config\.json"):
        load_policy(str(tmp_path / "nowhere"), dtype=torch.float32)


def test_an_adapter_on_the_head_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="leave it out of learner.lora_targets"):
        load_policy(save_model(tmp_path, tied=False), dtype=torch.float32, lora_rank=2, lora_targets=["lm_head"])


def test_a_model_that_caps_its_logits_is_refused(tmp_path):
    save_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("{", '{"final_logit_softcapping": 30.0,', 1))
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        load_policy(str(tmp_path), dtype=torch.float32)
