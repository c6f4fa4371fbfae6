"""Algorithms by short name. Each is loaded when it is used, so this module loads no torch."""

BUILTIN = {
    "grpo": "rlft.algorithms.grpo:grpo",
    "dr_grpo": "rlft.algorithms.grpo:dr_grpo",
    "dapo": "rlft.algorithms.grpo:dapo",
    "dpo": "rlft.algorithms.dpo:dpo",
    "ipo": "rlft.algorithms.dpo:ipo",
    "kto": "rlft.algorithms.kto:kto",
    "spin": "rlft.algorithms.dpo:spin",
    "rloo": "rlft.algorithms.rloo:rloo",
    "remax": "rlft.algorithms.remax:remax",
    "reinforce": "rlft.algorithms.reinforce:reinforce",
    "reinforce_pp": "rlft.algorithms.reinforce_pp:reinforce_pp",
    "reinforce_pp_baseline": "rlft.algorithms.reinforce_pp:reinforce_pp_baseline",
    "ppo": "rlft.algorithms.ppo:ppo",
    "vapo": "rlft.algorithms.vapo:vapo",
    "gdpo": "rlft.algorithms.gdpo:gdpo",
    "gigpo": "rlft.algorithms.gigpo:gigpo",
    "hgpo": "rlft.algorithms.hgpo:hgpo",
    "rise": "rlft.algorithms.rise:rise",
    "reflect_retry_reward": "rlft.algorithms.reflect:reflect_retry_reward",
}
