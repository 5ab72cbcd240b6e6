"""The one root of every error that sentinel-stream raises on purpose."""


class SentinelStreamError(Exception):
    """Base class: whoever catches it has caught everything that is ours."""


class UsageError(SentinelStreamError):
    """A flag, variable, file or address that the user gave is wrong; the text says which and what to do."""


class AddressError(UsageError):
    """An address that cannot be used for a socket."""


class InsecureAddressError(UsageError):
    """An address beyond this machine without keys and without `--insecure`."""


class KeyFileError(UsageError):
    """A key file that cannot be read, holds no key, or is open to others."""


class InvalidMessageError(SentinelStreamError):
    """A frame that is not a message of the conversation."""
