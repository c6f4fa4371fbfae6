"""The arithmetic of rlft/learner/memory.py against the peak memory of real learner ranks: `python benchmarks/memory/run.py MODEL`.

MODEL is a folder of SmolLM2-135M-Instruct (`rlft starter smollm2`). Every case is a process of its own, which takes two updates of two
full micro-batches; what is compared is its largest resident size less what it was before the model was loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WIDTH = 128  # tokens of a row
CASES = {
    "SmolLM2, float32": ("smollm2", {}),
    "SmolLM2, bfloat16": ("smollm2", {"dtype": "bfloat16"}),
    "SmolLM2, LoRA 16": ("smollm2", {"lora_rank": 16}),
    "Qwen2-like, 220 M, float32": ("qwen2", {}),
    "Qwen2-like, 90 M, narrow and deep, float32": ("deep", {}),
    "SmolLM2, float32, ZeRO 2": ("smollm2", {"zero_stage": 2}),
    "SmolLM2, float32, checkpointing": ("smollm2", {"gradient_checkpointing": True}),
}


WIDE = {"hidden_size": 1024, "num_hidden_layers": 14, "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 2816}
DEEP = {"hidden_size": 384, "num_hidden_layers": 40, "num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 1024}


def make_qwen2(folder: Path, sizes: dict[str, int]) -> None:
    """A random model of another shape, with a head of its own."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=32000, tie_word_embeddings=False, **sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0").save_pretrained(folder)


def resident() -> tuple[int, int]:
    """Bytes resident now, and at most since the last reset."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def measure(model: str, options: dict[str, object]) -> dict[str, float]:
    """One case, in this process."""
    from rlft.actors import zero
    from rlft.actors.learner_rank import LearnerRank
    from rlft.algorithms.reinforce import reinforce
    from rlft.config import LearnerConfig
    from rlft.learner.rows import Row, pack_rows
    from rlft.types import Setting, Source

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    zero.join_ranks(0, 1, "127.0.0.1", port, 600)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, _ = resident()
    learner = LearnerRank(LearnerConfig(lr=1e-6, **options), model, master_port=port)
    budgets, shape, training = learner.budgets, learner.shape, learner.training
    rng, rows = np.random.default_rng(0), []
    for number in range(2 * budgets.tokens // WIDTH):
        sampled = np.arange(WIDTH) >= WIDTH // 2
        rewards = np.zeros(WIDTH, np.float32)
        rewards[-1] = number % 2
        rows.append(
            Row(
                token_ids=rng.integers(5, 30000, WIDTH).astype(np.int32),
                sources=np.where(sampled, Source.POLICY, Source.PROMPT).astype(np.int8),
                turn_ids=np.where(sampled, 0, -1).astype(np.int16),
                rewards=rewards,
                logprobs=np.where(sampled, -1.0, 0.0).astype(np.float32),
                traj_id=number,
                group_id="g",
                policy_version=0,
            )
        )
    for _ in range(2):
        learner.update(reinforce(), Setting(), pack_rows(rows))
    _, peak = resident()
    from rlft.learner.memory import head_bytes

    head = head_bytes(shape, training, budgets.chunk)
    return {
        "stage": training.stage,
        "tokens": budgets.tokens,
        "chunk": budgets.chunk,
        "state": budgets.state,
        "activations": budgets.activations,
        "head": head,
        "predicted": budgets.state + budgets.activations + head,
        "measured": peak - before,
        "before": before,
        "whole": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--case")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if given.case:
        print("RESULT " + json.dumps(measure(str(given.model), CASES[given.case][1])))
        return
    headings = ("case", "ZeRO", "tokens", "chunk", "state", "activations", "head", "predicted", "measured", "off", "whole process")
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    with tempfile.TemporaryDirectory() as folder:
        for shape, sizes in (("qwen2", WIDE), ("deep", DEEP)):
            make_qwen2(Path(folder) / shape, sizes)
        for name, (kind, _) in CASES.items():
            if given.only not in name:
                continue
            model = str(given.model) if kind == "smollm2" else str(Path(folder) / kind)
            environment = {"OMP_NUM_THREADS": "1", **os.environ}
            run = subprocess.run([sys.executable, __file__, model, "--case", name], env=environment, capture_output=True, text=True)
            if run.returncode:
                sys.exit(run.stderr[-3000:])
            r = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
            gib = {key: f"{r[key] / 2**30:.2f}" for key in ("state", "activations", "head", "predicted", "measured", "whole")}
            off = r["predicted"] / r["measured"] - 1
            line = f"| {name} | {r['stage']} | {r['tokens']} | {r['chunk']} | {gib['state']} | {gib['activations']} | {gib['head']} | "
            lines.append(f"{line}{gib['predicted']} | {gib['measured']} | {off:+.0%} | {gib['whole']} |")
            print(lines[-1], flush=True)
    if not given.only:
        text = (HERE / "results.md").read_text() if (HERE / "results.md").exists() else "<!-- table -->\n<!-- end -->\n"
        before, _, rest = text.partition("<!-- table -->\n")
        after = rest.partition("<!-- end -->\n")[2]
        (HERE / "results.md").write_text(f"{before}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- end -->\n{after}")


if __name__ == "__main__":
    main()
