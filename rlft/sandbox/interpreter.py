"""What makes a forked process look as if it had been started as `python main.py`: names, streams, module, depth, ending."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import io
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable
from types import CodeType
from typing import Any

MAX_FRAMES, SHOWN_FRAMES = 5000, 50
DEPTH = 1000  # Python's own limit of recursion
ENTRY_CALLS = 1 if sys.version_info < (3, 12) else 0  # before 3.12 the call of exec counts as well


def add_site_names() -> None:
    """`exit`, `quit`, `help` and the like, which Python's site module adds; the rest of that module is not wanted."""
    import site

    site.setquit()
    site.setcopyright()
    site.sethelper()


def open_streams() -> None:
    """sys.stdin, stdout and stderr on descriptors 0, 1 and 2, as Python opens them for pipes in a UTF-8 locale."""
    for fd, name, mode, errors in ((0, "stdin", "r", None), (1, "stdout", "w", None), (2, "stderr", "w", "backslashreplace")):
        raw = io.FileIO(fd, mode, closefd=False)
        raw.name = f"<{name}>"
        buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffer, "utf-8", errors or "surrogateescape", newline="\n", line_buffering=name == "stderr")
        stream.mode = mode  # type: ignore[attr-defined]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def new_module(code: str, name: str, file: str = "main.py") -> types.ModuleType:
    """An empty module under its name and as the main one, with `file` beside the program's other files."""
    module = types.ModuleType(name)
    module.__file__ = os.path.join(os.getcwd(), file)
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules["__main__"] = sys.modules[name] = module
    sys.argv = [file]
    sys.path.insert(0, os.getcwd())
    remember_source(code, file)
    return module


def remember_source(code: str, name: str) -> None:
    """For tracebacks and `inspect`."""
    linecache.cache[name] = (len(code), None, io.StringIO(code, newline=None).readlines(), name)


def compiled(code: str, file: str = "main.py") -> CodeType:
    """Read as from a file: a byte order mark and a line that names the encoding count; no future statement of ours does."""
    return compile(code.encode("utf-8", "surrogatepass"), file, "exec", dont_inherit=True)


def execute(code: CodeType, namespace: dict[str, Any]) -> None:
    """Run module code, which may recurse as deeply as if it were the outermost frame."""
    allow_depth()
    exec(code, namespace)


def allow_depth() -> None:
    """Set the limit of recursion such that code which the caller executes has Python's own."""
    depth, frame = 0, sys._getframe(1)
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(DEPTH + depth + ENTRY_CALLS)


def end_as_python_does(scope: list[dict[str, Any]]) -> None:
    """Wait for threads, run what `atexit` holds, write out, and finalize what the module held; `scope` holds the last reference to it."""
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException as error:
            print_traceback(error)
    flush()
    sys.modules.pop("__main__", None)
    scope.clear()
    gc.collect()  # an open file is written out, `__del__` is called
    flush()


def exit_code(error: SystemExit) -> int:
    """Of `sys.exit(...)`; a text is printed."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with contextlib.suppress(Exception):
        print(error.code, file=sys.stderr)
    return 1


def report(error: BaseException) -> int:
    """Tell an uncaught exception by the program's own hook, if it has set one, else by a traceback; the exit code."""
    if sys.excepthook is sys.__excepthook__:
        print_traceback(error)
        return 1
    try:
        sys.excepthook(type(error), error, _own(error))
    except SystemExit as leaving:
        return exit_code(leaving)
    except BaseException as second:
        print_traceback(second)
        print_traceback(error)
    return 1


def print_traceback(error: BaseException) -> None:
    trace = _own(error)
    depth, frame = 0, trace
    while frame is not None:
        depth, frame = depth + 1, frame.tb_next
    limit = None if depth <= MAX_FRAMES else -SHOWN_FRAMES  # a million of them take seconds to print
    with contextlib.suppress(BaseException):
        traceback.print_exception(type(error), error, trace, limit, file=sys.stderr)


def _own(error: BaseException) -> types.TracebackType | None:
    """The traceback without the frames of this package."""
    trace = error.__traceback__
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == os.path.dirname(__file__):
        trace = trace.tb_next
    return trace


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


def finish(body: Callable[[], None], scope: list[dict[str, Any]]) -> tuple[int, BaseException | None]:
    """Run a script to its end: the exit code, and the exception that ended it if that was not an exit with code 0."""
    code, cause = 0, None
    try:
        body()
    except SystemExit as error:
        code = exit_code(error)
        cause = error if code else None
    except BaseException as error:
        code, cause = report(error), error
    if cause is not None:
        cause = cause.with_traceback(None)  # its frames would keep alive what is finalized at the end
    end_as_python_does(scope)
    return code, cause
