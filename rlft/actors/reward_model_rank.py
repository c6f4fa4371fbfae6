"""One DeepSpeed rank that trains a reward model: preference pairs in, an exact gradient step on all ranks.

Axes: B rows, T tokens, P pairs. Every public method is collective: all ranks call it together, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlft.actors.capacity import counted, rank_capacity
from rlft.actors.learner_rank import PAD_ID
from rlft.actors.score_model import load_score_model
from rlft.config import LearnerConfig, learning_rate
from rlft.data.preferences import EncodedPair
from rlft.errors import NonFiniteError
from rlft.learner.memory import choose_budgets, explain, shape_of, training_of
from rlft.learner.meter import Meter
from rlft.learner.policy import buckets, exports, load_tokenizer, save_model
from rlft.learner.schedule import lr_factor

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # scores of chosen and rejected, margins -> loss, [P] each
BUCKET_BYTES = 1 << 28


class RewardModelRank:
    """Holds this rank's share of the reward model and its optimizer. Plain and synchronous: it runs as a Ray actor
    or in any process.

    Args:
        config: the run file's [learner]; a micro-batch budget and a ZeRO stage that it leaves open are chosen here.
        model: folder or Hub name of a language model, or of a reward model to go on with.
        rank, world_size, master_addr, master_port: where the ranks meet.
        steps: updates in the whole run, for the learning rate schedule.
        seed: initial values of the new head and of adapters.
        chat_template: to be saved with the tokenizer; "" keeps its own.

    Raises:
        ConfigError: a missing model, or options that do not go together.
    """

    def __init__(
        self,
        config: LearnerConfig,
        model: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        master_addr: str = "127.0.0.1",
        master_port: int = 29500,
        steps: int = 1,
        seed: int = 0,
        chat_template: str = "",
    ) -> None:
        from rlft.actors import zero

        self._zero, self._rank, self._world_size = zero, rank, world_size
        self._device = zero.join_ranks(rank, world_size, master_addr, master_port, config.timeout_s)
        dtype = zero.training_dtype(config, self._device)
        memory = rank_capacity(self._device, config.gpus)
        self._tokenizer = load_tokenizer(model, chat_template)
        pad_id = self._tokenizer.eos_token_id if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id
        torch.manual_seed(seed)  # the head and adapters start equal on every rank
        lora = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_targets": config.lora_targets}
        scorer = load_score_model(
            model,
            dtype=dtype,
            pad_id=PAD_ID if pad_id is None else pad_id,
            gradient_checkpointing=config.gradient_checkpointing,
            **lora,
        )
        self._pad_id = scorer.lm.config.get_text_config().pad_token_id
        self._exports = exports(scorer)
        shape = shape_of(scorer.lm.config.get_text_config(), *counted(scorer))
        training = training_of(config, shape, world_size, dtype == torch.bfloat16, memory.total)
        budgets = choose_budgets(shape, training, memory.available, self._device.type == "cuda", config)
        self._told = explain(budgets, training, config, memory.available, head=False)
        self._lr = learning_rate(config, "train-rm")
        changes = {"zero_stage": training.stage, "lr": self._lr, "max_tokens_per_micro_batch": budgets.tokens}
        config = self._config = config.model_copy(update=changes)
        self._engine = zero.start_engine(scorer.to(self._device), config, dtype == torch.bfloat16)
        self._total_steps, self._steps, self._skipped_in_a_row = steps, 0, 0

    def ready(self) -> Mapping[str, str]:
        """Answers once the rank is up, with what is to be told of what it chose (`memory.explain`)."""
        return self._told

    def update(self, loss: PairLoss, num_pairs: int, pairs: Sequence[EncodedPair]) -> dict[str, float]:
        """Take one step on the mean loss over `num_pairs` pairs, of which `pairs` (none is fine) are this rank's.

        Returns metrics over all ranks.

        Raises:
            NonFiniteError: `max_non_finite` steps in a row were skipped.
        """
        meter = Meter(self._device)
        start = time.perf_counter()
        for micro in self._micro_batches(pairs):
            self._backward(micro, loss, num_pairs, meter)
        meter.timed("time/learner_backward_s", start)
        start = time.perf_counter()
        lr = self._step(meter)
        meter.timed("time/learner_optimizer_s", start)
        return meter.totals() | {"learner/lr": lr}

    @torch.no_grad()
    def score(self, pairs: Sequence[EncodedPair]) -> np.ndarray:
        """Scores [P, 2] of this rank's pairs: chosen, rejected."""
        scores = np.zeros((len(pairs), 2), np.float32)
        places = {id(pair): place for place, pair in enumerate(pairs)}
        for micro in self._micro_batches(pairs):
            found = self._scores(self._engine.module, micro)
            for pair, row in zip(micro, found.T.tolist(), strict=False):  # without pairs the row is padding's
                scores[places[id(pair)]] = row
        return scores

    def save(self, folder: str | Path) -> None:
        """Write the reward model in Hugging Face format, tokenizer included; `folder` appears complete or not at all.

        AutoModelForSequenceClassification loads it, and its logit 0 is the score.
        """
        kept = {}
        for bucket in buckets(self._exports, BUCKET_BYTES):
            with self._zero.whole(p for export in bucket for p in export.parameters):
                if self._rank == 0:
                    kept |= {export.name: export.read().to(export.parameters[0].dtype).cpu().clone() for export in bucket}
        if self._rank == 0:
            lm = self._engine.module.lm
            lm.config.architectures = [type(lm).__name__]
            save_model(folder, kept, lm, self._tokenizer)
        torch.distributed.barrier()

    def _micro_batches(self, pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
        """As many on every rank; those that are filled up are empty."""
        budget = self._config.max_tokens_per_micro_batch
        assert budget is not None
        micros = pair_batches(pairs, budget)
        most = torch.tensor(len(micros), device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return micros + [[] for _ in range(int(most) - len(micros))]

    def _scores(self, scorer: torch.nn.Module, pairs: Sequence[EncodedPair]) -> Tensor:
        """[2, P] scores of chosen and rejected; [2, 1] of padding where there are no pairs."""
        rows = [ids for side in ("chosen", "rejected") for ids in (getattr(pair, side) for pair in pairs)]
        rows = rows or [np.full(2, self._pad_id)] * 2
        lengths = torch.tensor([len(ids) for ids in rows])
        token_ids = torch.full((len(rows), int(lengths.max())), self._pad_id)
        for row, ids in zip(token_ids, rows, strict=True):
            row[: len(ids)] = torch.from_numpy(np.asarray(ids, np.int64))
        mask = (torch.arange(token_ids.shape[1]) < lengths[:, None]).long()
        return scorer(token_ids.to(self._device), mask.to(self._device)).view(2, -1)

    def _backward(self, pairs: Sequence[EncodedPair], loss: PairLoss, num_pairs: int, meter: Meter) -> None:
        """Accumulate the exact gradient of these pairs' share of the step."""
        chosen, rejected = self._scores(self._engine, pairs)
        real = torch.full((len(pairs) or 1,), bool(pairs), device=self._device)
        margins = torch.tensor([pair.margin for pair in pairs] or [0.0], device=self._device)
        total = torch.where(real, loss(chosen, rejected, margins), 0.0).sum() / num_pairs
        self._engine.backward(self._zero.exact_loss(total, self._world_size))
        difference = (chosen - rejected).detach()
        right = (difference > 0).double() + 0.5 * (difference == 0)
        meter.add("loss/preference", total.detach())
        meter.add_ratio("preference/accuracy", torch.where(real, right, 0.0).sum(), real.sum())
        meter.add_ratio("preference/margin", torch.where(real, difference, 0.0).sum(), real.sum())
        meter.add_ratio("preference/score", torch.where(real, (chosen + rejected).detach(), 0.0).sum(), 2 * real.sum())
        meter.add("learner/num_trained_tokens", sum(len(pair.chosen) + len(pair.rejected) for pair in pairs))

    def _step(self, meter: Meter) -> float:
        """Apply the gradient, or skip it on every rank where it is not finite. Returns the learning rate."""
        config = self._config
        factor = lr_factor(self._steps, self._total_steps, config.schedule, config.warmup_steps, config.min_lr_ratio)
        norm = self._zero.step(self._engine, factor, config.grad_clip)
        self._steps += 1
        self._skipped_in_a_row = 0 if norm is not None else self._skipped_in_a_row + 1
        meter.count("learner/num_skipped", 0 if norm is not None else 1)
        if norm is not None:
            meter.average("grad/norm", norm)
        if self._skipped_in_a_row >= config.max_non_finite:
            raise NonFiniteError(
                f"loss or gradient was not finite in {self._skipped_in_a_row} optimizer steps in a row; "
                "the weights are those before them: look for extreme margins, or lower learner.lr"
            )
        return self._lr * factor


def pair_batches(pairs: Sequence[EncodedPair], max_tokens: int) -> list[list[EncodedPair]]:
    """Cut pairs into micro-batches of at most `max_tokens` padded tokens, both sides of a pair in one.

    They are sorted by the longer side, so that little is padding; a single pair beyond the budget stands alone.
    """
    cut: list[list[EncodedPair]] = []
    for pair in sorted(pairs, key=lambda pair: pair.width):
        if not cut or 2 * pair.width * (len(cut[-1]) + 1) > max_tokens:
            cut.append([])
        cut[-1].append(pair)
    return cut
