"""Run in a process of its own by test_engine.py: one vLLM engine, weights published into it, results as JSON."""

import asyncio
import json
import sys

import torch
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

from rlft.actors import engine as engine_module
from rlft.actors.engine import Engine
from rlft.actors.weights.receipt import ReceiptWriter
from rlft.config import RolloutConfig, SamplingConfig
from rlft.errors import PublishError

EOS = 1
PROBE = [[7, 30, 5, 90, 41, 12, 200, 3], [15, 15, 16, 17, 250, 2, 99, 100]]


def learner_logprobs(model):
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in PROBE]
    return [[row[t, token].item() for t, token in enumerate(ids[1:])] for row, ids in zip(rows, PROBE, strict=True)]


async def engine_logprobs(engine):
    return [await engine.logprobs(ids) for ids in PROBE]


async def verdict(engine, model):
    """Largest gap to the model's log-probabilities, and what the engine says of the model's weights."""
    writer = ReceiptWriter(engine.version, columns=True)
    weights = dict(writer.note((name, parameter.detach()) for name, parameter in model.named_parameters()))
    pairs = zip(await engine_logprobs(engine), learner_logprobs(model), strict=True)
    gap = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    found = await engine.verify(writer.receipt())
    try:
        found.require(len(weights), "worker", 1)
    except PublishError as error:
        return {"gap": gap, "error": str(error)}
    return {"gap": gap, "error": "", "compared": [len(weights), found.num_whole, found.num_columns, len(found.unread)]}


async def publish(folder, workers, results):
    """New weights with and without the packed head rebuilt, and the old prefix's cache."""
    engine = Engine(folder, RolloutConfig(max_model_len=400, memory=1.0, max_tokens=8, tensor_parallel_size=workers), [EOS], seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    results["start"] = await verdict(engine, model)
    sampling = SamplingConfig(max_tokens=8)
    prompt = PROBE[0] * 40  # many full blocks of the prefix cache
    before = await engine.generate(prompt, sampling, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    results["stale"] = await verdict(engine, model)
    repack, engine_module._repack_head = engine_module._repack_head, id  # does nothing to the model
    await engine.load_weights(list(model.named_parameters()), version=1)
    results["not repacked"] = await verdict(engine, model)
    engine_module._repack_head = repack
    await engine.load_weights(list(model.named_parameters()), version=2)
    results["published"] = await verdict(engine, model)
    after = await engine.generate(prompt, sampling, 1)
    results["versions"] = [before.policy_version, after.policy_version]
    results["after"] = gap(model, prompt, after)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    await engine.call(engine_module._reload, engine._engine, list(model.named_parameters()))  # the cache stays
    results["old prefix"] = gap(model, prompt, await engine.generate(prompt, sampling, 1))
    await engine.forget_prefixes(version=3)
    return engine, model


def gap(model, prompt, completion):
    """Largest difference of a completion's log-probabilities to those of the model."""
    with torch.no_grad():
        logprobs = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0].log_softmax(-1)
    want = [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion.token_ids)]
    return max(abs(a - b) for a, b in zip(want, completion.logprobs, strict=True))


async def sample(engine, model, results):
    """Sampling options, seeds, finish reasons, and many requests at once."""
    prompt = PROBE[1]
    warm = SamplingConfig(temperature=0.7, max_tokens=6)
    drawn = await asyncio.gather(*(engine.generate(prompt, warm, seed) for seed in (1, 1, 2)))
    results["seeded"] = [list(c.token_ids) for c in drawn]
    others = [engine.generate(PROBE[0] * n, warm, n) for n in range(1, 30)]
    results["in a crowd"] = list((await asyncio.gather(*others, engine.generate(prompt, warm, 1)))[-1].token_ids)
    unseeded, engine._seeded = SamplingConfig(max_tokens=20), False  # as with rollout.seeded = false
    results["unseeded"] = [list(c.token_ids) for c in await asyncio.gather(*(engine.generate(prompt, unseeded, 1) for _ in range(2)))]
    engine._seeded = True
    results["tempered"] = [list(drawn[0].logprobs), under(model, prompt, drawn[0], 0.7)]
    cut = await engine.generate(prompt, SamplingConfig(top_p=0.5, max_tokens=6), 1)
    results["truncated"] = [list(cut.logprobs), under(model, prompt, cut, 1.0)]
    results["p-values"] = await drawn_as_said(engine, model, prompt)
    results["cached"] = await cached(engine)
    full = [await engine.generate([5] * length, SamplingConfig(max_tokens=64), 3) for length in (396, 399)]
    results["room"] = [[len(c.token_ids), c.finish_reason] for c in full]
    only = SamplingConfig(top_k=1, max_tokens=4)
    results["top_k"] = [list((await engine.generate(prompt, only, seed)).token_ids) for seed in range(3)]
    refused = asyncio.gather(engine.generate([10**6], only), return_exceptions=True)
    beside = await engine.generate(prompt, only, 0)
    results["refused"] = [type((await refused)[0]).__name__, list(beside.token_ids)]
    # A model that always ends: pad and EOS do not matter, position and finish reason do.
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        ending = {name: tensor.clone() for name, tensor in model.named_parameters()}
        key = "lm_head.weight" if "lm_head.weight" in ending else "model.embed_tokens.weight"
        ending[key] = torch.zeros_like(head)
    await engine.load_weights(list(ending.items()), version=4)
    many = await asyncio.gather(*(engine.generate(prompt, SamplingConfig(max_tokens=40), seed) for seed in range(300)))
    ended = [c for c in many if c.finish_reason == "stop"]
    results["ended"] = [len(ended), all(c.token_ids[-1] == EOS and EOS not in c.token_ids[:-1] for c in ended)]
    results["cut"] = all(len(c.token_ids) == 40 and EOS not in c.token_ids[:-1] for c in many if c.finish_reason == "length")


def under(model, prompt, completion, temperature):
    """A completion's log-probabilities under the whole tempered distribution of the model."""
    with torch.no_grad():
        logprobs = (model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0] / temperature).log_softmax(-1)
    return [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion.token_ids)]


async def drawn_as_said(engine, model, prompt, samples=4000):
    """Chi-square p-values of first tokens drawn with a seed each, against the model's probabilities and against flatter ones."""
    one = SamplingConfig(max_tokens=1)
    drawn = await asyncio.gather(*(engine.generate(prompt, one, seed) for seed in range(samples)))
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=len(logits))

    def p_value(probs):
        order = probs.argsort(descending=True)
        cells = (probs[order].cumsum(0) * 20).floor().clamp(max=19).long()  # tokens of like probability share a cell
        want = torch.zeros(20, dtype=torch.float64).index_add(0, cells, probs[order] * samples)
        got = torch.zeros(20, dtype=torch.float64).index_add(0, cells, counts[order].double())
        some = want > 0
        statistic = ((got - want)[some] ** 2 / want[some]).sum()
        freedom = torch.tensor(float(some.sum() - 1), dtype=torch.float64)
        return torch.special.gammaincc(freedom / 2, statistic / 2).item()

    return [p_value(logits.softmax(-1)), p_value((logits / 1.5).softmax(-1))]


async def cached(engine):
    """Tokens of the second of two equal prompts that came from the prefix cache: of 40 tokens, and of 20."""
    params = SamplingParams(max_tokens=1, detokenize=False)
    counts = []
    for length in (40, 20):
        prompt = [7 + n for n in range(length)]
        _, second = await asyncio.gather(*(engine._request(prompt, params) for _ in range(2)))
        counts.append(second.num_cached_tokens)
    return counts


async def main(folder, workers):
    results = {}
    engine, model = await publish(folder, workers, results)
    await sample(engine, model, results)
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
