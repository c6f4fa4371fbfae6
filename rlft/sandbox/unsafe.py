"""Code as a plain subprocess of this account: no protection, only for code that is trusted."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.errors import SandboxError
from rlft.sandbox import printed
from rlft.sandbox.programs import check_name, execute
from rlft.sandbox.types import RUNTIME, Execution, Limits, room_for_stacks


class UnsafeSandbox:
    """Runs Python with everything this account may do. Time, memory per process and output are limited; nothing else is.

    Raises:
        SandboxError: without `allow_unsafe=True`.
    """

    def __init__(self, *, allow_unsafe: bool = False, limits: Limits | None = None) -> None:
        if allow_unsafe is not True:
            raise SandboxError("the sandbox 'unsafe' runs model-written code unprotected; say allow_unsafe = true if that is meant")
        self._limits = limits or Limits()

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Execution:
        """Run a script in an empty folder that holds `files`."""
        limits = limits or self._limits
        with tempfile.TemporaryDirectory(prefix="rlft-unsafe-") as folder:
            for name, text in {**(files or {}), "main.py": code}.items():
                path = Path(folder, check_name(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode(errors="surrogatepass"))
            cpu_s = math.ceil(limits.cpu_s)  # the hard limit later: it kills without saying why
            argv = ["prlimit", f"--as={limits.memory_mb + room_for_stacks(limits) << 20}", f"--cpu={cpu_s}:{cpu_s + 1}", "--core=0", "--"]
            env = {**RUNTIME, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder}
            return await execute([*argv, sys.executable, "main.py"], stdin=stdin, limits=limits, cwd=folder, env=env)

    async def call(
        self, code: str, calls: Sequence[tuple[str, Sequence[Any], Mapping[str, Any]]], *, limits: Limits | None = None
    ) -> list[Execution]:
        """Call functions that a script defines; what they return has to be plain data."""
        return printed.read(await self.run(printed.program(code, calls), limits=limits), len(calls))

    async def close(self) -> None:
        """Nothing is kept between executions."""
