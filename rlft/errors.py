"""Every error rlft raises on purpose. Plain constructors with one message: Ray pickles them."""


class RlftError(Exception):
    """Base class."""


class ConfigError(RlftError, ValueError):
    """A key, value or import path in the run file is wrong."""


class DataError(RlftError, ValueError):
    """A task source is missing, empty or has no usable row."""


class RewardError(RlftError):
    """A trajectory could not be graded. Not the same as a reward of zero."""


class ToolError(RlftError):
    """A tool call was malformed or refused; the text is shown to the policy."""


class PublishError(RlftError):
    """The engines do not hold the weights that the learner published."""


class NonFiniteError(RlftError):
    """Loss or gradients were not finite several steps in a row."""


class StallError(RlftError):
    """A role made no progress before its deadline."""
