"""The model's program in its process: as a script, as functions that are called, or as cells of a session."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from rlft.sandbox import values, wire
from rlft.sandbox.calling import resolve
from rlft.sandbox.interpreter import allow_depth, compiled, execute, finish, flush, new_module, print_traceback, remember_source

MAX_ERROR = 4096
MAX_REPR = 1 << 18


def run_script(control: int, request: dict[str, Any]) -> None:
    """Like `python main.py`, exit code, traceback and ending included. What is sent on `control` is a remark only."""
    scope = [new_module(request["code"], "__main__").__dict__]
    code, cause = finish(lambda: execute(compiled(request["code"]), scope[0]), scope)
    if isinstance(cause, SystemExit):
        _send(control, {"status": "error", "error": f"exit code {code}"})
    elif cause is not None:
        _send(control, _remark(cause))
    os._exit(code)


def run_calls(control: int, request: dict[str, Any]) -> None:
    """Execute the code, then the calls in turn; each result is sent as soon as it is there."""
    # What stands under `if __name__ == "__main__"` is not part of it.
    namespace = new_module(request["code"], "solution").__dict__
    _, remark = _outcome(lambda: execute(compiled(request["code"]), namespace))
    if remark:
        _send(control, {"failed": remark})
        os._exit(0)
    for index, (name, args) in enumerate(request["calls"]):
        encoded, remark = _outcome(lambda name=name, args=args: _call(namespace, name, args))
        flush()
        if remark:
            _send(control, {"call": index, **remark})
        else:
            wire.write_all(control, wire.raw_frame(f'{{"call":{index},"status":"ok","value":{encoded}}}'))
    os._exit(0)


def _call(namespace: dict[str, Any], name: str, packed: Any) -> str:
    args, kwargs = values.unpack(packed)
    return values.dumps(resolve(namespace, name)(*args, **kwargs))


def serve_cells(control: int) -> None:
    """Execute cells in one namespace until the stream ends; SIGINT interrupts a running cell and nothing else."""
    running = [False]

    def interrupt(*_: Any) -> None:
        if running[0]:
            raise KeyboardInterrupt

    namespace = new_module("", "__main__", "<session>").__dict__
    allow_depth()
    _send(control, {"cell": 0})
    while (request := wire.read_frame(control)) is not None:
        signal.signal(signal.SIGINT, interrupt)
        number = request["cell"]
        value, remark = _cell(namespace, request["code"], f"<cell {number}>", running)
        flush()
        _send(control, {"cell": number, **(remark or {"status": "ok", "value": value})})
    os._exit(0)


def _cell(namespace: dict[str, Any], code: str, name: str, running: list[bool]) -> tuple[str | None, dict[str, str]]:
    remember_source(code, name)

    def execute() -> str | None:
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        running[0] = True
        try:
            exec(compile(tree, name, "exec", dont_inherit=True), namespace)
            if not isinstance(last, ast.Expr):
                return None
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
            if value is None:
                return None
            namespace["_"] = value
            return repr(value)[:MAX_REPR]
        finally:
            running[0] = False

    return _outcome(execute)


def _outcome(body: Callable[[], Any]) -> tuple[Any, dict[str, str]]:
    """(value, {}) or (None, what went wrong), the traceback printed."""
    try:
        return body(), {}
    except BaseException as error:
        print_traceback(error)
        return None, _remark(error)


def _remark(error: BaseException) -> dict[str, str]:
    status = "error"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        status = "oom"
    elif isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES):
        status = "denied"
    try:
        text = traceback.format_exception_only(error)[-1].strip()
    except BaseException as second:  # the exception's __str__ is the model's
        text = f"{type(error).__name__} ({type(second).__name__} when it was printed)"
    return {"status": status, "error": text[:MAX_ERROR]}


def _send(control: int, message: dict[str, Any]) -> None:
    wire.write_all(control, wire.raw_frame(json.dumps(message)))
