"""Weights from learner to engines on GPUs, by vLLM's own weight-transfer engines (NCCL, CUDA IPC).

On CPU weights go through memory instead (`LearnerRank.export_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from rlft.config import RunConfig
from rlft.errors import ConfigError

Transfer = Literal["nccl", "ipc"]


def choose_transfer(config: RunConfig) -> Transfer | None:
    """None on CPU; CUDA IPC when learner and engine share GPUs (fractions of one); else NCCL."""
    if not (config.rollout.gpus and config.learner.gpus):
        return None
    shared = {config.rollout.gpus < 1, config.learner.gpus < 1}
    if len(shared) == 2:
        raise ConfigError("rollout.gpus and learner.gpus: give both whole GPUs, or both a fraction of one, which they then share")
    return "ipc" if shared == {True} else "nccl"


class SyncClient:
    """Drives the engines' side of a transfer: one call to every rollout worker, with a deadline.

    vLLM counts an engine's workers from `rank_offset`; each engine gets its own.
    """

    def __init__(self, workers: Sequence[Any], workers_per_engine: int, timeout_s: float) -> None:
        self.workers, self.workers_per_engine, self.timeout_s = workers, workers_per_engine, timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = []
        for i in range(len(self.workers)):
            offset = init_info.get("rank_offset")
            infos.append(init_info if offset is None else {**init_info, "rank_offset": offset + i * self.workers_per_engine})
        self._call("init_weight_transfer_engine", [(info,) for info in infos])

    def start_weight_update(self) -> None:
        self._call("start_weight_update", [()] * len(self.workers))

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._call("update_weights", [(update_info,)] * len(self.workers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update", [()] * len(self.workers))

    def _call(self, method: str, args: Sequence[tuple[Any, ...]]) -> None:
        import ray

        calls = [worker.weight_transfer.remote(method, *a) for worker, a in zip(self.workers, args, strict=True)]
        ray.get(calls, timeout=self.timeout_s)


def connect(
    transfer: Transfer,
    rank: int,
    client: SyncClient,
    weights: Callable[[], Iterator[tuple[str, Any]]],
    shapes: Sequence[tuple[str, Any, tuple[int, ...]]],
    address: tuple[str, int],
) -> Any:
    """The learner's end of a transfer; call `send_weights()` on it at every publish, on every rank.

    Args:
        weights: starts a fresh pass over (name, full tensor), the same on every rank.
        shapes: (name, dtype, shape) of what `weights` yields, in its order.
        address: host and free port of learner rank 0.
    """
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    class LearnerWeights(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(*entry) for entry in shapes]

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            return weights()

    if transfer == "nccl":
        world_size = 1 + len(client.workers) * client.workers_per_engine
        info = NCCLTrainerInitInfo(master_address=address[0], master_port=address[1], world_size=world_size, rank=rank)
    else:
        info = IPCTrainerInitInfo(rank=rank, packed=True)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=LearnerWeights())
