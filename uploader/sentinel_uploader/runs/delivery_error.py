"""Why a call to the API or to storage did not succeed, classified once, where the answer is read.

Loops look at `DeliveryError.remedy` alone: never at a status code, never at a text.
"""

from enum import Enum

from sentinel_protocol.common.errors import SentinelStreamError


class Remedy(Enum):
    """What makes sense after a failed call."""

    RETRY = "retry"
    """The destination as a whole is away or overloaded (connection, timeout, 408, 425, 429, 5xx)."""
    RETRY_SLOWLY = "retry-slowly"
    """The destination refuses us until somebody changes something there (API token, missing bucket)."""
    REFRESH = "refresh"
    """The temporary credentials are not good any more: ask for new ones, then try again."""
    GIVE_UP = "give-up"
    """The answer is final for this request: a person must look at the run."""


class DeliveryError(SentinelStreamError):
    """A call to the Sentinel API or to storage did not succeed.

    `retry_after_s` is the server's own wish, when it had one; `status_code` is `None` without an HTTP answer.
    The text is for people: it names the call, the status and the beginning of the answer, never a secret.
    """

    def __init__(
        self,
        text: str,
        *,
        remedy: Remedy,
        status_code: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.remedy = remedy
        self.status_code = status_code
        self.retry_after_s = retry_after_s
