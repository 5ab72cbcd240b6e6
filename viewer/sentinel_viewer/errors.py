"""What can go wrong with looking at a run."""

from sentinel_protocol.common.errors import SentinelStreamError, UsageError


class RunNotFoundError(UsageError):
    """No run, or more than one, has the name that was given."""


class MissingExtraError(UsageError):
    """The command needs a package that is not installed."""


class ReadError(SentinelStreamError):
    """A place or an object cannot be read."""


def missing_extra(what: str) -> MissingExtraError:
    """Return the error for something that the extra `[view]` installs."""
    return MissingExtraError(f"{what} needs more packages: pip install 'sentinel-stream[view]'")
