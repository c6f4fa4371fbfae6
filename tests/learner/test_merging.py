import pytest
import torch
from torch import nn

from rlft.errors import PublishError
from rlft.learner.merging import adapted_layers, check_merge
from rlft.learner.policy import PolicyModel, add_adapters, exports

DTYPES = [torch.float32, torch.bfloat16]


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(48, 96, bias=False), nn.Linear(96, 48, bias=False)


def adapted(dtype, size=1e-4):
    torch.manual_seed(0)
    lm = Body().to(dtype)
    add_adapters(lm, 4, 16.0, ["up", "down"])
    layers = adapted_layers(PolicyModel(lm))
    for layer in layers.values():
        nn.init.normal_(layer.lora_B["default"].weight, std=size)
    return layers, {export.name: export for export in exports(PolicyModel(lm))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-4, 1e-1])
def test_what_is_exported_is_what_the_adapters_do(dtype, size):
    layers, found = adapted(dtype, size)
    assert set(layers) == set(found) == {"up.weight", "down.weight"}
    for name, layer in layers.items():
        check_merge(layer, found[name].read(), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, -1.0])
def test_a_merge_with_another_scale_or_without_adapters_is_refused_by_name(dtype, factor):
    layers, _ = adapted(dtype)
    layer = layers["up.weight"]
    wrong = layer.base_layer.weight.float() + factor * layer.get_delta_weight("default").float()
    with pytest.raises(PublishError, match="up.weight with its adapters merged is not what the learner computes with"):
        check_merge(layer, wrong, "up.weight")


def test_adapters_of_another_layer_are_refused():
    layers, _ = adapted(torch.float32)
    layer, other = layers["up.weight"], layers["down.weight"]
    wrong = layer.base_layer.weight + other.get_delta_weight("default").T
    with pytest.raises(PublishError):
        check_merge(layer, wrong, "up.weight")


def test_rounding_a_small_change_to_bfloat16_loses_it_which_is_why_the_sum_is_checked_before():
    layers, found = adapted(torch.bfloat16, 1e-6)
    layer, merged = layers["up.weight"], found["up.weight"].read()
    lost = (merged.to(torch.bfloat16).float() - layer.base_layer.weight.float()).norm() / layer.get_delta_weight("default").float().norm()
    assert lost < 0.2
    with pytest.raises(PublishError):
        check_merge(layer, merged.to(torch.bfloat16), "up.weight")
