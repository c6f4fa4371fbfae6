"""Short attacks on a sandbox that has just started."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlft.sandbox.sandbox import Sandbox
async def check(sandbox: Sandbox) -> None:
    """Raises SandboxError."""
