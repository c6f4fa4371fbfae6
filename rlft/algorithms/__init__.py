"""Algorithms by short name. Each is loaded when it is used, so this module loads no torch."""

BUILTIN = {
    "grpo": "rlft.algorithms.grpo:grpo",
    "dr_grpo": "rlft.algorithms.grpo:dr_grpo",
    "dapo": "rlft.algorithms.grpo:dapo",
    "reinforce": "rlft.algorithms.reinforce:reinforce",
}
