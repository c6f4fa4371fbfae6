# my_algorithm.py
from rlft.algorithms.advantages import group_centered, outcome
from rlft.algorithms.base import Algorithm


def reinforce() -> Algorithm:
    def loss(logprobs, batch):
        return -batch.advantages * logprobs, {}

    return Algorithm("reinforce", outcome(group_centered), loss, min_group=2)
