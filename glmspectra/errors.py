"""All error classes on one page.

The message of each is one sentence that says what is wrong, where (file, line, tensor, key) and what to do about it;
the command line prints it as it stands and exits with `exit_status`.
"""


class GlmspectraError(Exception):
    """Something failed while working."""

    exit_status = 1


class RequestError(GlmspectraError):
    """The request was wrong: an option, a selection, a path that is not there."""

    exit_status = 2


class ConfigError(RequestError):
    """A configuration file holds an unknown key, a wrong type or a combination that cannot be."""


class CheckpointError(GlmspectraError):
    """A checkpoint cannot be read: truncated, incomplete, of an unknown format, or unsafe to open."""


class StoreError(GlmspectraError):
    """A table or manifest cannot be written or read."""


class DataError(GlmspectraError):
    """Training data holds rows that cannot be used."""


class TrainingError(GlmspectraError):
    """Training stopped: a value is not finite, or what was asked for did not happen."""


class MissingExtraError(RequestError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, purpose: str):
        super().__init__(f"{purpose} needs the package {package}, which is not installed: pip install {package}.")
