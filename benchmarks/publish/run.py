"""Publishes that must pass and publishes that must not, on real engines: `python benchmarks/publish/run.py` writes results.md beside it.

Each case runs in a process of its own: a vLLM engine, a policy in torch that takes AdamW steps, and the publish as the actors do it.
With `--case` and a JSON object the script runs one case and prints its figures.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMAND = "python benchmarks/publish/run.py --smollm2 FOLDER"
EOS = 1
RATES = (1e-6, 1e-5, 1e-4, 1e-3)
LENGTHS = (8, 16, 32)
PUBLISHES_A_RUN = 10  # then the policy starts again with another seed, learning rate and probe length


class Pair:
    """An engine and the policy that is published to it."""

    def __init__(self, model: str, dtype: str, lora: bool, workers: int) -> None:
        import torch
        from transformers import AutoTokenizer

        from rlft.actors.engine import Engine
        from rlft.actors.weights.probe import probe_ids
        from rlft.config import RolloutConfig
        from rlft.learner.merging import adapted_layers
        from rlft.learner.policy import exports, load_policy

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.torch, self.dtype = torch, dtype
        config = RolloutConfig(max_model_len=256, memory=1.0, max_tokens=8, max_num_seqs=32, dtype=dtype, tensor_parallel_size=workers)
        self.engine = Engine(model, config, [EOS], seed=0)
        adapters = {"lora_rank": 16, "lora_alpha": 16.0} if lora else {}
        self.policy = load_policy(model, dtype=getattr(torch, dtype), logprob_chunk=256, **adapters)
        self.exports, self.adapted, self.badly_merged = exports(self.policy), adapted_layers(self.policy), 0
        self.lora = lora
        self.tied = not any(export.name == "lm_head.weight" for export in self.exports)
        self.trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.trained]
        self.ids = probe_ids(AutoTokenizer.from_pretrained(model, trust_remote_code=False), 256)
        self.vocabulary = self.policy.lm.get_input_embeddings().weight.shape[0]
        self.version = -1
        self.restart(0, 0.0)

    def restart(self, seed: int, lr: float) -> None:
        """The policy as it was loaded, with a fresh optimizer over float32 copies of what trains."""
        for parameter, start in zip(self.trained, self.start, strict=True):
            parameter.data.copy_(start)
        self.master = [p.detach().float().clone() for p in self.trained]
        self.optimizer = self.torch.optim.AdamW(self.master, lr=lr, weight_decay=0.0)
        self.generator = self.torch.Generator().manual_seed(seed)

    def step(self) -> None:
        """One AdamW step on random tokens with random advantages."""
        ids = self.torch.randint(3, self.vocabulary, (2, 12), generator=self.generator)
        weights = self.torch.randn(ids.shape, generator=self.generator)
        logprobs = self.policy(ids, self.torch.ones_like(ids, dtype=self.torch.bool))[0]
        for parameter in self.trained:
            parameter.grad = None
        (logprobs * weights).mean().backward()
        for master, parameter in zip(self.master, self.trained, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.optimizer.step()
        for master, parameter in zip(self.master, self.trained, strict=True):
            parameter.data.copy_(master)

    def send(self) -> tuple[Any, dict[str, Any]]:
        """Receipt and weights of the next version, as they leave the learner."""
        from rlft.actors.weights.buckets import pack, unpack
        from rlft.actors.weights.receipt import ReceiptWriter, narrowed

        self.version += 1
        writer = ReceiptWriter(self.version, columns=True)
        bucket = pack(writer.note(narrowed(((e.name, self.read(e)) for e in self.exports), self.dtype)))
        return writer.receipt(), {name: tensor.clone() for name, tensor in unpack(bucket)}

    def read(self, export: Any) -> Any:
        """As `LearnerRank` reads it."""
        from rlft.errors import PublishError
        from rlft.learner.merging import check_merge

        whole, layer = export.read(), self.adapted.get(export.name)
        if layer is not None:
            try:
                check_merge(layer, whole, export.name)
            except PublishError:
                self.badly_merged += 1
        return whole.to(export.parameters[0].dtype)

    def policy_probe(self, ids: list[list[int]]) -> list[list[float]]:
        from rlft.actors.weights.probe import policy_logprobs

        return policy_logprobs(self.policy, ids, 0, self.torch.device("cpu"))

    async def engine_probe(self, ids: list[list[int]]) -> list[list[float]]:
        return list(await asyncio.gather(*(self.engine.logprobs(sequence) for sequence in ids)))

    def probe(self, length: int) -> Any:
        from rlft.actors.weights.probe import Probe

        return Probe([sequence[:length] for sequence in self.ids], self.dtype, merged=self.lora)

    async def publish(self, probe: Any, load: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
        """One publish, with a fault where `load` is one. Every layer of the check gives its verdict, and its seconds."""
        from rlft.actors.weights.receipt import received_wrong
        from rlft.errors import PublishError

        seconds: dict[str, float] = {}
        clock, self.badly_merged = Clock(seconds), 0
        receipt, weights = self.send()
        found = ["merge"] if self.badly_merged else []
        clock("send")
        arrived = load(weights) if load else weights
        clock("fault")
        if received_wrong(receipt, arrived.items()):
            found.append("received")
        clock("received")
        await self.engine.load_weights(list(arrived.items()), receipt.version)
        clock("load")
        verdict = await self.engine.verify(receipt)
        found += ["used"] if verdict.wrong or verdict.absent else []
        clock("used")
        theirs = await self.engine_probe(probe.token_ids)
        clock("engine probe")
        ours = self.policy_probe(probe.token_ids)
        clock("policy probe")
        figures: dict[str, Any] = {}
        try:
            figures = probe.compare(theirs, ours, "engine", receipt.version)
        except PublishError as error:
            found.append("probe: " + ("level" if "computes another policy" in str(error) else "change"))
        counts = {"whole": verdict.num_whole, "columns": verdict.num_columns, "unread": len(verdict.unread)}
        named = {"wrong": list(verdict.wrong)[:4], **counts}
        return {"found": found, "seconds": seconds, **named, **figures}


class Clock:
    """Seconds since it was last asked, by name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


async def healthy(pair: Pair, publishes: int, seed: int) -> dict[str, Any]:
    """Publishes without a fault: largest statistics, alarms, seconds."""
    from rlft.actors.weights.probe import MAX_SLOPE_OFF, MIN_CLEAR

    rows: list[dict[str, Any]] = []
    rng = random.Random(seed)
    while len(rows) < publishes:
        number = len(rows) // PUBLISHES_A_RUN
        lr = RATES[number % len(RATES)] * (10 if pair.lora else 1)
        pair.restart(rng.randrange(2**31), lr)
        probe = pair.probe(LENGTHS[number % len(LENGTHS)])
        for i in range(PUBLISHES_A_RUN):
            if i:
                pair.step()
            rows.append({"lr": lr, **await pair.publish(probe)})
    slopes = [
        (abs(row[f"publish/slope_{when}"] - 1), row[f"publish/clear_{when}"])
        for row in rows
        for when in ("first", "last")
        if f"publish/slope_{when}" in row
    ]
    names = rows[1]["seconds"]
    return {
        "publishes": len(rows),
        "alarms": [row for row in rows if row["found"]][:5],
        "num_alarms": sum(bool(row["found"]) for row in rows),
        "mean_diff": max(row.get("publish/mean_diff", 0.0) for row in rows),
        "max_diff": max(row.get("publish/max_diff", 0.0) for row in rows),
        "off": max((off for off, clear in slopes if clear > MIN_CLEAR), default=0.0),
        "num_clear": sum(clear > MIN_CLEAR for _, clear in slopes),
        "clear_far": max((clear for off, clear in slopes if off > MAX_SLOPE_OFF), default=0.0),
        **{name: rows[0][name] for name in ("whole", "columns", "unread")},
        "seconds": {name: sorted(row["seconds"][name] for row in rows)[len(rows) // 2] for name in names},
    }


def swapped(first: str, second: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {**weights, first: weights[second], second: weights[first]}


def with_rows(name: str, a: int, b: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def load(weights: dict[str, Any]) -> dict[str, Any]:
        changed = weights[name].clone()
        changed[[a, b]] = weights[name][[b, a]]
        return {**weights, name: changed}

    return load


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


async def faults(pair: Pair) -> dict[str, Any]:
    """Each fault behind a healthy publish, one AdamW step at 1e-6 apart, and what found it."""
    from rlft.actors import engine as engine_module

    q = [e.name for e in pair.exports if e.name.endswith("q_proj.weight")]
    stale = dict(pair.send()[1])
    cases: dict[str, Callable[[dict[str, Any]], dict[str, Any]] | None] = {
        "none (control)": None,
        "missed step": lambda weights: stale,
        "two tensors swapped": swapped(q[0], q[-1]),
        "two rows swapped": with_rows(q[0], 3, 4),
        "one tensor missing": without(q[-1].replace("self_attn.q_proj", "mlp.up_proj")),
    }
    results = {}
    for name, load in cases.items():
        pair.restart(1, 1e-6)
        probe = pair.probe(32)
        results[f"{name}, before"] = await pair.publish(probe)
        stale = pair.send()[1]
        pair.step()
        results[name] = await pair.publish(probe, load)
    if pair.tied:
        pair.restart(1, 1e-6)
        results["stale tied head, before"] = await pair.publish(pair.probe(32))
        pair.step()
        repack, engine_module._repack_head = engine_module._repack_head, id  # does nothing to the model
        results["stale tied head"] = await pair.publish(pair.probe(32))
        engine_module._repack_head = repack
    pair.restart(1, 1e-6)
    honest = pair.exports
    by_name = {e.name: e for e in honest}
    pair.exports = [copy.copy(e) for e in honest]
    for export in pair.exports:
        other = {q[0]: q[-1], q[-1]: q[0]}.get(export.name)
        if other:
            object.__setattr__(export, "read", by_name[other].read)
    results["two tensors sent under each other's name"] = await pair.publish(pair.probe(32))
    pair.exports = honest
    results["after all (control)"] = await pair.publish(pair.probe(32))
    return results


async def merges(pair: Pair, lr: float, publishes: int) -> dict[str, Any]:
    """Adapters merged at another scale than they are applied at: after how many publishes it is found."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in pair.policy.modules() if isinstance(module, LoraLayer)]
    results = {}
    for name, factor in {"right (control)": 1.0, "twice the scale": 2.0, "half the scale": 0.5, "adapters left out": 0.0}.items():
        pair.restart(1, lr)
        probe, honest = pair.probe(32), pair.exports

        def scaled(read: Callable[[], Any], factor: float = factor) -> Callable[[], Any]:
            def merged() -> Any:
                for layer in layers:
                    layer.scaling["default"] *= factor
                made = read()
                for layer in layers:
                    layer.scaling["default"] = 1.0
                return made

            return merged

        pair.exports = [copy.copy(e) for e in honest]
        for export in pair.exports:
            if len(export.parameters) > 1:
                object.__setattr__(export, "read", scaled(export.read))
        start = flat(pair.policy_probe(pair.ids))
        for i in range(publishes):
            if i:
                pair.step()
            row = await pair.publish(probe)
            now = flat(pair.policy_probe(pair.ids))
            moved = sum(abs(a - b) for a, b in zip(now, start, strict=True)) / len(now)
            if row["found"]:
                break
        results[name] = {**row, "publish": i, "moved": moved}
        pair.exports = honest
    return results


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    pair = Pair(case["model"], case["dtype"], case.get("lora", False), case.get("workers", 1))

    async def go() -> dict[str, Any]:
        results: dict[str, Any] = {}
        if case.get("publishes"):
            results["healthy"] = await healthy(pair, case["publishes"], case.get("seed", 0))
        if case.get("faults"):
            results["faults"] = await faults(pair)
        if case.get("merges"):
            results["merges"] = await merges(pair, case["merges"], case.get("merge_publishes", 20))
        return results

    return asyncio.run(go())


def in_process(case: dict[str, Any], timeout_s: float = 900) -> dict[str, Any]:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{case}: {done.stderr[-4000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def cases(smollm2: str, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole benchmark: 1,000 publishes and the faults."""
    from rlft.recipes.starter import make_model

    tied, untied = str(make_model(work / "tied")), str(make_model(work / "untied", tied=False))
    for dtype in ("float32", "bfloat16"):
        yield f"SmolLM2, {dtype}", {"model": smollm2, "dtype": dtype, "publishes": 50, "faults": True}
        yield f"demo's size, {dtype}", {"model": tied, "dtype": dtype, "publishes": 180, "faults": True}
        yield f"untied, {dtype}", {"model": untied, "dtype": dtype, "publishes": 150, "faults": True, "seed": 1}
        yield f"demo's size, {dtype}, LoRA", {"model": tied, "dtype": dtype, "lora": True, "publishes": 110, "merges": 1e-2}
        lora = {"publishes": 20, "merges": 1e-3, "merge_publishes": 4}
        yield f"SmolLM2, {dtype}, LoRA", {"model": smollm2, "dtype": dtype, "lora": True, **lora}


LAYERS = ("received", "used", "merge", "probe: level", "probe: change")


def report(results: dict[str, Any]) -> str:
    """What results.md says."""
    from rlft.actors.weights.probe import MAX_MEAN_DIFF, MAX_SLOPE_OFF, MIN_CLEAR

    healthy = {name: r["healthy"] for name, r in results.items()}
    total, alarms = (sum(h[key] for h in healthy.values()) for key in ("publishes", "num_alarms"))
    lines = [
        "# Publishes that pass, and faults that do not",
        "",
        f"`{COMMAND}`. {total} publishes without a fault, learning rates 1e-6 to 1e-3 (ten times that for LoRA), probes of 8, 16 and 32",
        f"tokens a sentence, a new seed every {PUBLISHES_A_RUN} publishes: **{alarms} alarms**. Limits: {MAX_MEAN_DIFF['float32']:g}",
        f"(float32) and {MAX_MEAN_DIFF['bfloat16']:g} (bfloat16) nats on average; the engine's change within {MAX_SLOPE_OFF:g} of the",
        f"learner's where that is {MIN_CLEAR:g} times their rounding (clear), which adapters merged in bfloat16 are not asked.",
        "",
        "| case | publishes | alarms | largest mean diff | of its limit | largest slope off 1 where clear | clear | whole / columns |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, h in healthy.items():
        limit = MAX_MEAN_DIFF["float32" if "float32" in name else "bfloat16"]
        counts = f"{h['whole']} / {h['columns']}"
        lines.append(
            f"| {name} | {h['publishes']} | {h['num_alarms']} | {h['mean_diff']:.2g} | {h['mean_diff'] / limit:.1%} | {h['off']:.2g} "
            f"| {h['num_clear']} | {counts} |"
        )
    lines += ["", "What found each fault, one AdamW step at 1e-6 after a healthy publish (adapters: after one step):", ""]
    lines += [f"| case | fault | {' | '.join(LAYERS)} |", "|---" * (len(LAYERS) + 2) + "|"]
    for name, r in results.items():
        for fault, row in {**r.get("faults", {}), **r.get("merges", {})}.items():
            if not fault.endswith(", before"):
                marks = " | ".join("x" if layer in row["found"] else "" for layer in LAYERS)
                lines.append(f"| {name} | {fault} | {marks} |")
    lines += ["", "Milliseconds of a publish, medians, one thread (send: copies, checksums, columns, and merging adapters):", ""]
    parts = ("send", "received", "load", "used", "engine probe", "policy probe")
    lines += [f"| case | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for name, h in healthy.items():
        lines.append(f"| {name} | {' | '.join(format(1000 * h['seconds'][part], '.0f') for part in parts)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=json.loads)
    parser.add_argument("--smollm2", default="smollm2", help="folder of SmolLM2-135M-Instruct (rlft starter smollm2)")
    args = parser.parse_args()
    if args.case:
        print("RESULT " + json.dumps(run_case(args.case)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for name, case in cases(args.smollm2, Path(work)):
            started = time.perf_counter()
            results[name] = in_process(case)
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
            (HERE / "results.md").write_text(report(results))


if __name__ == "__main__":
    main()
