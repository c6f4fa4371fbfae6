"""Every error rlft raises on purpose. Plain constructors with one message: Ray pickles them."""


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
