"""Why the spool cannot be used."""

from sentinel_protocol.common.errors import SentinelStreamError


class SpoolError(SentinelStreamError):
    """The spool cannot be used."""


class SpoolLockedError(SpoolError):
    """Another uploader owns the spool."""


class SpoolFullError(SpoolError):
    """There is no room for more rows; what is there stays intact."""


class SpoolDamagedError(SpoolError):
    """What the spool holds cannot be read."""
