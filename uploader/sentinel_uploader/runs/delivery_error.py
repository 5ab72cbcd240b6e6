"""Why a call to the API or to storage did not succeed, classified once, where the answer is read.

Loops look at `DeliveryError.retry_action` alone: never at a status code, never at a text.
"""

from enum import Enum

from sentinel_protocol.common.errors import SentinelStreamError


class RetryAction(Enum):
    """What makes sense after a failed call."""

    RETRY = "retry"
    """The destination as a whole is away or overloaded (connection, timeout, 408, 425, 429, 5xx)."""
    RETRY_SLOW = "retry-slowly"
    """The destination refuses us until somebody changes something there (API token, missing bucket)."""
    REFRESH_CREDENTIALS = "refresh"
    """The temporary credentials are not good any more: ask for new ones, then try again."""
    FAIL = "give-up"
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
        retry_action: RetryAction,
        status_code: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.retry_action = retry_action
        self.status_code = status_code
        self.retry_after_s = retry_after_s
