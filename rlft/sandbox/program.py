"""The model's program in its process: as a script, as functions that are called, or as cells of a session."""

from __future__ import annotations

import ast
import atexit
import contextlib
import errno
import json
import linecache
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from rlft.sandbox import values, wire

MAX_ERROR = 4096
MAX_REPR = 1 << 18
MAX_FRAMES, SHOWN_FRAMES = 5000, 50


def run_script(control: int, request: dict[str, Any]) -> None:
    """Like `python main.py`, exit code, traceback and atexit included. What is sent on `control` is a remark only."""
    namespace = _main_module(request["code"], "main.py")
    code, remark = _finish(lambda: exec(compile(request["code"], "main.py", "exec"), namespace))
    if remark:
        _send(control, remark)
    os._exit(code)


def run_calls(control: int, request: dict[str, Any]) -> None:
    """Execute the code, then the calls in turn; each result is sent as soon as it is there."""
    namespace = _main_module(request["code"], "main.py")
    namespace["__name__"] = "solution"  # what stands under `if __name__ == "__main__"` is not part of it
    _, remark = _outcome(lambda: exec(compile(request["code"], "main.py", "exec"), namespace))
    if remark:
        _send(control, {"failed": remark})
        os._exit(0)
    for index, (name, args) in enumerate(request["calls"]):
        encoded, remark = _outcome(lambda name=name, args=args: _call(namespace, name, args))
        _flush()
        if remark:
            _send(control, {"call": index, **remark})
        else:
            wire.write_all(control, wire.raw_frame(f'{{"call":{index},"status":"ok","value":{encoded}}}'))
    os._exit(0)


def _call(namespace: dict[str, Any], name: str, packed: Any) -> str:
    args, kwargs = values.unpack(packed)
    return values.dumps(_resolve(namespace, name)(*args, **kwargs))


def _resolve(namespace: dict[str, Any], name: str) -> Any:
    """`f`, `Class.static`, or `Class.method`, for which an instance is made without arguments; so for `Class().method`."""
    first, *rest = name.replace("()", "").split(".")
    if first not in namespace:
        raise NameError(f"the program defines no {first!r}")
    found = namespace[first]
    for part in rest:
        if isinstance(found, type) and isinstance(getattr(found, part, None), types.FunctionType):
            static = any(isinstance(vars(base).get(part), staticmethod) for base in found.__mro__)
            found = found if static else found()
        found = getattr(found, part)
    return found


def serve_cells(control: int) -> None:
    """Execute cells in one namespace until the stream ends; SIGINT interrupts a running cell and nothing else."""
    running = [False]

    def interrupt(*_: Any) -> None:
        if running[0]:
            raise KeyboardInterrupt

    namespace = _main_module("", "<session>")
    _send(control, {"cell": 0})
    while (request := wire.read_frame(control)) is not None:
        signal.signal(signal.SIGINT, interrupt)
        number = request["cell"]
        value, remark = _cell(namespace, request["code"], f"<cell {number}>", running)
        _flush()
        _send(control, {"cell": number, **(remark or {"status": "ok", "value": value})})
    os._exit(0)


def _cell(namespace: dict[str, Any], code: str, name: str, running: list[bool]) -> tuple[str | None, dict[str, str]]:
    _remember_source(code, name)

    def execute() -> str | None:
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        running[0] = True
        try:
            exec(compile(tree, name, "exec"), namespace)
            if not isinstance(last, ast.Expr):
                return None
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
            if value is None:
                return None
            namespace["_"] = value
            return repr(value)[:MAX_REPR]
        finally:
            running[0] = False

    return _outcome(execute)


def _main_module(code: str, name: str) -> dict[str, Any]:
    module = types.ModuleType("__main__")
    module.__file__ = name
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    sys.argv = [name]
    sys.path.insert(0, os.getcwd())
    _remember_source(code, name)
    return module.__dict__


def _remember_source(code: str, name: str) -> None:
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)


def _outcome(body: Callable[[], Any]) -> tuple[Any, dict[str, str]]:
    """(value, {}) or (None, what went wrong), the traceback printed."""
    try:
        return body(), {}
    except BaseException as error:
        _print_traceback(error)
        return None, _remark(error)


def _finish(body: Callable[[], Any]) -> tuple[int, dict[str, str]]:
    """The exit code of a script, and what went wrong."""
    code, remark = 0, {}
    try:
        try:
            body()
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            _flush()
    except SystemExit as error:
        code = _exit_code(error)
        remark = {"status": "error", "error": f"exit code {code}"} if code else {}
    except BaseException as error:
        _print_traceback(error)
        code, remark = 1, _remark(error)
    _flush()
    return code, remark


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with contextlib.suppress(Exception):
        print(error.code, file=sys.stderr)
    return 1


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


def _print_traceback(error: BaseException) -> None:
    """Without the frames of this file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    depth, frame = 0, trace
    while frame is not None:
        depth, frame = depth + 1, frame.tb_next
    limit = None if depth <= MAX_FRAMES else -SHOWN_FRAMES  # a million of them take seconds to print
    with contextlib.suppress(BaseException):
        traceback.print_exception(type(error), error, trace, limit, file=sys.stderr)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


def _send(control: int, message: dict[str, Any]) -> None:
    wire.write_all(control, wire.raw_frame(json.dumps(message)))
