"""What trains, at which rate and with which weight decay; without DeepSpeed."""

import torch
from torch import nn

from rlft.actors.zero import parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.value_head = nn.Linear(2, 1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_norms_and_biases_have_no_weight_decay_and_matrices_have_it():
    model = Model()
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {id(p): 0.1 if p.ndim == 2 else 0.0 for p in model.parameters() if p.requires_grad}
    assert {group["lr"] for group in groups} == {1e-3} and all(group["body"] for group in groups)


def test_without_weight_decay_the_body_is_one_group():
    assert len(parameter_groups(Model(), lr=1e-3, weight_decay=0.0)) == 1
    assert len(parameter_groups(Model(), lr=1e-3, weight_decay=0.1)) == 2  # the control


def test_the_value_head_has_its_own_rate_and_is_no_part_of_the_body():
    model = Model()
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1, head_lr=1e-2)
    rates = {id(p): (group["lr"], group["body"]) for group in groups for p in group["params"]}
    heads = {id(p) for p in model.value_head.parameters()}
    assert rates == {i: (1e-2, False) if i in heads else (1e-3, True) for i in rates} and heads < rates.keys()


def test_adamw_leaves_what_has_no_gradient_of_its_own_only_without_weight_decay():
    model = Model()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-2, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"projection.weight", "value_head.weight"}
