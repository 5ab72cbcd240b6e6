"""Errors that several packages raise, and the base class of all errors of sentinel-stream."""


class SentinelStreamError(Exception):
    """Base class of every error that sentinel-stream raises on purpose."""


class UsageError(SentinelStreamError):
    """A flag, variable, file or address of the user is wrong; the text names it and says what to do."""


class AddressError(UsageError):
    """An address that cannot be used for a socket."""


class InsecureAddressError(UsageError):
    """An address beyond this machine without keys and without `--insecure`."""


class KeyFileError(UsageError):
    """A key file that cannot be read, holds no key, or is accessible to other users."""


class InvalidMessageError(SentinelStreamError):
    """A frame that is not a message of the protocol."""
