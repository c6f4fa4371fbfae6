"""Algorithms by short name. Each is loaded when it is used, so this module loads no torch."""

BUILTIN = {
    "grpo": "rlft.algorithms.grpo:grpo",
    "dr_grpo": "rlft.algorithms.grpo:dr_grpo",
    "dapo": "rlft.algorithms.grpo:dapo",
    "dpo": "rlft.algorithms.dpo:dpo",
    "ipo": "rlft.algorithms.dpo:ipo",
    "kto": "rlft.algorithms.kto:kto",
    "spin": "rlft.algorithms.dpo:spin",
    "reinforce": "rlft.algorithms.reinforce:reinforce",
}
