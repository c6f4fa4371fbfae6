"""Generalised advantage estimation over what the policy wrote, across the turns and rows of a trajectory.

Axes: B rows, T tokens, M trajectories, N policy tokens of all rows, L policy tokens of the longest trajectory.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlft.types import Batch

Discount = Literal["token", "turn"]


def gae(
    batch: Batch,
    values: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    discount: Discount = "token",
    length_alpha: float | None = None,
    critic_lam: float | None = None,
) -> tuple[Tensor, Tensor]:
    """A_t = sum_k (gamma lam)^k delta_(t+k), with delta_t = r_t + gamma V_(t+1) - V_t (arXiv:1506.02438).

    The steps are the tokens with a turn, in order; what the environment says between them is part of
    the transition and takes no time. Its rewards count for the policy token before, and a reward
    before the first one for none. After the last token the value is 0.

    Args:
        batch: rewards, turn_ids, traj_ids. Turns are in order of their number, and each is in one row.
        values: [B, T], expected return of the state in which token t is chosen; read at policy tokens only.
        gamma, lam: 0 to 1.
        discount: "token" applies both at every step. "turn" applies them where a new turn begins, and
            1 within a turn, so that a long turn costs no more than a short one.
        length_alpha: 1 - 1 / (alpha l) (not below 0) instead of `lam` for the advantages of a trajectory of
            l policy tokens: VAPO (arXiv:2504.05118).
        critic_lam: lambda of the returns, the decoupled GAE of VAPO; None takes the advantages' own.

    Returns:
        advantages [B, T], and returns [B, T], the critic's target A^critic + V; 0 where the policy wrote nothing.
    """
    token, traj, step, reward = _steps(batch)
    length = torch.bincount(traj)
    M, L = len(length), int(length.max()) if len(length) else 0

    def table(x: Tensor) -> Tensor:
        out = x.new_zeros(M, L + 1)
        out[traj, step] = x
        return out

    r, v = table(reward), table(values.flatten()[token].double())
    turn = table(batch.turn_ids.flatten()[token])
    discounted = torch.ones_like(turn, dtype=torch.bool) if discount == "token" else turn != turn.roll(-1, dims=1)
    delta = r + torch.where(discounted, gamma, 1.0) * v.roll(-1, dims=1) - v

    def estimate(weight: Tensor) -> Tensor:
        """Sum of the deltas from each step on, [N]; `weight` [M] of the next step."""
        out = torch.zeros_like(delta)
        decay = torch.where(discounted, gamma * weight[:, None], 1.0)
        for t in range(L - 1, -1, -1):
            out[:, t] = delta[:, t] + decay[:, t] * out[:, t + 1]
        return out[traj, step]

    def on_tokens(x: Tensor) -> Tensor:
        out = torch.zeros_like(batch.rewards, dtype=torch.float64).flatten()
        out[token] = x
        return out.view_as(batch.rewards).float()

    fixed = torch.full_like(length, lam, dtype=torch.float64)
    adaptive = fixed if length_alpha is None else (1 - 1 / (length_alpha * length.double())).clamp(min=0)
    advantages = estimate(adaptive)
    critic = advantages if critic_lam is None else estimate(torch.full_like(fixed, critic_lam))
    return on_tokens(advantages), on_tokens(critic + v[traj, step])


def _steps(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The policy's tokens in the order in which they were written, [N] each: position in the
    flattened batch, trajectory, number within it, and the rewards (float64) since that token."""
    B, T = batch.token_ids.shape
    _, row = torch.unique(batch.traj_ids, return_inverse=True)
    written = batch.turn_ids >= 0
    none = int(batch.turn_ids.max()) + 1
    # Rows in order of their first turn; one without any comes last.
    first = torch.where(written, batch.turn_ids, none).amin(-1)
    order = ((row * (none + 1) + first)[:, None] * T + torch.arange(T, device=row.device)).flatten().argsort()
    written, traj = written.flatten()[order], row[:, None].expand(B, T).flatten()[order]
    token, owner = order[written], traj[written]
    latest = written.cumsum(0) - 1  # of the policy tokens, the last one so far
    reward = batch.rewards.double().flatten()[order]
    earned = ((latest >= 0) & (reward != 0)).nonzero()[:, 0]
    earned = earned[owner[latest[earned]] == traj[earned]]
    rewards = reward.new_zeros(len(token)).index_add_(0, latest[earned], reward[earned])
    length = torch.bincount(owner)
    step = torch.arange(len(token), device=token.device) - (length.cumsum(0) - length)[owner]
    return token, owner, step, rewards
