"""Environments: messages in, messages out; no tokens, no ray, no torch."""

BUILTIN = {
    "single_turn": "rlft.envs.single_turn:SingleTurn",
    "attempts": "rlft.envs.attempts:Attempts",
    "reflect_retry": "rlft.envs.reflect:ReflectRetry",
}
