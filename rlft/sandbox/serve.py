"""The local sandbox behind HTTP, in SandboxFusion's format, so that other machines may use it."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from rlft.errors import SandboxError
from rlft.sandbox.backends import Backend, open_sandbox
from rlft.sandbox.types import Execution, Limits

EXIT_CODES = {"ok": 0, "error": 1, "timeout": None, "oom": 137, "output_limit": 153, "crashed": 139, "denied": 159}


class RunCode(BaseModel):
    """A request to run Python. Files are text in base64; asking for files back is refused."""

    code: str
    language: str = "python"
    stdin: str | None = None
    run_timeout: float = Field(10.0, gt=0)
    compile_timeout: float = 10.0
    memory_limit_MB: int = -1
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []


def make_app(*, token: str = "", longest_s: float = 60.0, most_mb: int = 4096, **options: Any) -> FastAPI:
    """A web application that runs Python for whoever has the token; serve it with uvicorn. Its sandbox lives as long as it is served.

    Args:
        token: expected as `Authorization: Bearer ...`; "" lets everyone in.
        longest_s, most_mb: what a request may ask for at most.
        options: of the sandbox.
    """
    opened: list[Backend] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opened.append(await open_sandbox("local", **options))
        yield
        await opened.pop().close()

    app = FastAPI(title="rlft sandbox", lifespan=lifespan)

    @app.post("/run_code")
    async def run_code(request: Request) -> dict[str, Any]:
        said = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(said.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "the token is missing or wrong")
        try:
            asked = RunCode.model_validate_json(await request.body())
            files = {name: base64.b64decode(content or "", validate=True).decode() for name, content in asked.files.items()}
        except (ValueError, binascii.Error) as error:
            raise HTTPException(422, str(error)) from error
        if asked.language != "python" or asked.fetch_files:
            raise HTTPException(422, "this server runs language 'python' and sends no files back")
        wall_s = min(asked.run_timeout, longest_s)
        memory_mb = min(asked.memory_limit_MB, most_mb) if asked.memory_limit_MB > 0 else most_mb
        limits = Limits(wall_s=wall_s, cpu_s=wall_s, memory_mb=memory_mb)
        try:
            return reply(await opened[0].run(asked.code, stdin=asked.stdin or "", files=files, limits=limits))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except SandboxError as error:
            return {"status": "SandboxError", "message": str(error), "compile_result": None, "run_result": None, "files": {}}

    return app


def reply(execution: Execution) -> dict[str, Any]:
    """An execution as SandboxFusion writes it: exit codes stand for what its format has no word for."""
    stderr = execution.stderr
    if execution.error and execution.error not in stderr:
        stderr = f"{stderr.rstrip()}\n{execution.error}".lstrip()
    result = {
        "status": "TimeLimitExceeded" if execution.status == "timeout" else "Finished",
        "execution_time": execution.wall_s,
        "return_code": EXIT_CODES[execution.status],
        "stdout": execution.stdout,
        "stderr": stderr,
    }
    status = "Success" if execution.status == "ok" else "Failed"
    return {"status": status, "message": "", "compile_result": None, "run_result": result, "files": {}}
