import pytest

from rlft.actors.weights.transfer import SyncClient, choose_transfer
from rlft.config import validate
from rlft.errors import ConfigError


@pytest.mark.parametrize(
    ("rollout", "learner", "transfer"),
    [(0, 0, None), (1, 0, None), (0, 1, None), (1, 1, "nccl"), (2, 1, "nccl"), (0.5, 0.5, "ipc")],
)
def test_the_way_of_weights_follows_from_the_gpus(rollout, learner, transfer):
    config = validate({"model": "m", "rollout": {"gpus": float(rollout)}, "learner": {"gpus": float(learner)}})
    assert choose_transfer(config) == transfer


class Calls(SyncClient):
    def _call(self, method, args):
        self.sent = (method, list(args))


def test_half_a_gpu_beside_a_whole_one_is_refused():
    with pytest.raises(ConfigError, match="give both whole GPUs, or both a fraction"):
        choose_transfer(validate({"model": "m", "rollout": {"gpus": 0.5}, "learner": {"gpus": 1.0}}))


def test_every_engine_gets_its_own_ranks_in_the_transfer_group():
    client = Calls(["a", "b", "c"], workers_per_engine=2, timeout_s=1)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    method, args = client.sent
    assert method == "init_weight_transfer_engine"
    assert [info["rank_offset"] for (info,) in args] == [1, 3, 5]
    assert {info["world_size"] for (info,) in args} == {7}


def test_without_ranks_every_engine_gets_the_same_information():
    client = Calls(["a", "b"], workers_per_engine=1, timeout_s=1)
    client.init_weight_transfer_engine({"packed": True})
    assert client.sent[1] == [({"packed": True},), ({"packed": True},)]
