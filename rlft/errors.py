"""Every error rlft raises on purpose, and the place in a user's code where one arose. One message each: Ray pickles them."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path

# What would move the cursor, change the terminal or turn the order of letters around.
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
OURS = f"{Path(__file__).parent}{os.sep}"
# Where code lies that a user did not write: this package, Python's own modules, installed packages.
NOT_THE_USERS = (OURS, *(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")))


class RlftError(Exception):
    """Base class."""


class ConfigError(RlftError, ValueError):
    """A key, value or import path in the run file is wrong."""


class DataError(RlftError, ValueError):
    """A task source is missing, empty or has no usable row."""


class RewardError(RlftError):
    """A trajectory could not be graded. Not the same as a reward of zero."""


class TaskError(RewardError):
    """The task itself cannot be graded, whatever is answered: never replaced by a reward's `on_error`."""


class RenderError(RewardError, ConfigError):
    """The chat template cannot render a conversation, or loses a part of it: a trajectory's fault in a run, the run file's before it."""


class ToolError(RlftError):
    """A tool call was malformed or refused; the text is shown to the policy."""


class SandboxError(RlftError):
    """The sandbox cannot be had as configured; nothing was run unprotected instead."""


class PublishError(RlftError):
    """The engines do not hold the weights that the learner published."""


class SaveError(RlftError):
    """A checkpoint could not be written; the complete ones before it are whole."""


class NonFiniteError(RlftError):
    """Loss or gradients were not finite several steps in a row."""


class StallError(RlftError):
    """A role made no progress before its deadline."""


class CallbackError(RlftError):
    """A callback of the user's raised; the run stopped there."""


def explain(error: BaseException) -> str:
    """An exception in one line: what it is, and in which file and line of the user's own code it arose.

    Where no such line took part it is the last one outside of this package.
    """
    if isinstance(error, SyntaxError) and error.filename:
        said, line = f"{type(error).__name__}: {error.msg}", (error.text or "").strip()
        return f"{said} ({shown_path(error.filename)}, line {error.lineno}{line and f': {line}'})"
    said = traceback.format_exception_only(error)[-1].strip()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<frozen", OURS))]
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THE_USERS)]
    return f"{said} ({shown_path(at.filename)}, line {at.lineno})" if (at := next(reversed(theirs or frames), None)) else said


def shown_path(path: str) -> str:
    """A path as a person sees it from the current folder."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def visible(text: str) -> str:
    """Text by others (a model, data, a server) as it may be printed: it shows what it holds and does nothing to a terminal.

    Control characters but tabs and line feeds are written as escapes.
    """
    return HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text.replace("\r\n", "\n"))
