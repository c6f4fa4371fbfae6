"""The one place that picks a sandbox: by name, with what all of them can do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rlft.errors import SandboxError
from rlft.sandbox.types import Execution, Limits

FunctionCall = tuple[str, Sequence[Any], Mapping[str, Any]]
TOKEN = "RLFT_SANDBOX_TOKEN"  # environment variable with the token of a remote sandbox


class Backend(Protocol):
    """What runs Python for others. What the code does wrong is an Execution; SandboxError says that nothing could be run."""

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Execution: ...

    async def call(self, code: str, calls: Sequence[FunctionCall], *, limits: Limits | None = None) -> list[Execution]: ...

    async def close(self) -> None: ...


async def open_sandbox(backend: str = "local", *, allow_unsafe: bool = False, **options: Any) -> Backend:
    """A started sandbox.

    Args:
        backend: "local" (the kernel's sandbox on this machine; `options` of `Sandbox`), "A" or "B" (that, in this tier only),
            "http://..." or "https://..." (a server in SandboxFusion's format; `options` of `RemoteSandbox`, its token from
            RLFT_SANDBOX_TOKEN unless given), or "unsafe".
        allow_unsafe: needed for "unsafe", which runs code as a plain subprocess.

    Raises:
        SandboxError: no such backend, or it cannot be had. Another one is never taken instead.
    """
    if backend in ("local", "A", "B"):
        from rlft.sandbox.sandbox import Sandbox

        local = Sandbox(**options) if backend == "local" else Sandbox(**{"tier": backend, **options})
        await local.start()
        return local
    if backend.startswith(("http://", "https://")):
        from rlft.sandbox.remote import RemoteSandbox

        return RemoteSandbox(backend, **{"token": os.environ.get(TOKEN, ""), **options})
    if backend == "unsafe":
        from rlft.sandbox.unsafe import UnsafeSandbox

        return UnsafeSandbox(allow_unsafe=allow_unsafe, **options)
    raise SandboxError(f"no sandbox {backend!r}; expected 'local', 'A', 'B', 'http://host:port' or 'unsafe'")
