"""Memory that a rank may use: the node's, or its control group's where that allows less."""

import psutil
from torch import nn

from rlft.actors.capacity import counted, node_memory


def test_a_control_groups_limit_counts_where_it_is_the_smaller(tmp_path):
    free = node_memory(tmp_path)  # no control group at all
    assert free[1] == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert node_memory(tmp_path)[1] == free[1]
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert node_memory(tmp_path) == (600000.0, 1000000.0)
    (tmp_path / "memory.max").write_text(f"{2 * psutil.virtual_memory().total}\n")  # the control: a limit beyond the node's is none
    assert node_memory(tmp_path)[1] == free[1]


def test_parameters_are_counted_once_and_by_whether_they_train():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
    model.append(model[0])  # shared weights
    assert counted(model) == (8 + 6, 8)
