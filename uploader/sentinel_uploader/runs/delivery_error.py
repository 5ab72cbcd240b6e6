"""Why a call to the API or to storage failed. The client that reads the response classifies it, once.

Retry loops look at `DeliveryError.retry_action` alone, never at a status code or a text.
"""

from enum import Enum

from sentinel_protocol.common.errors import SentinelStreamError


class RetryAction(Enum):
    """How delivery continues after a failed call."""

    RETRY = "retry"
    """The destination is unreachable or overloaded (connection, timeout, 408, 425, 429, 5xx)."""
    RETRY_SLOW = "retry-slowly"
    """The destination rejects the call until a person changes something (API token, missing bucket)."""
    REFRESH_CREDENTIALS = "refresh"
    """The temporary credentials are no longer valid: request new ones, then try again."""
    FAIL = "give-up"
    """No repetition will succeed: a person must look at the run."""


class DeliveryError(SentinelStreamError):
    """A call to the Sentinel API or to storage failed.

    `retry_after_s` is the server's `Retry-After`, if any. `status_code` is `None` without an HTTP response.
    The text names the call, the status and the beginning of the response. It never contains a secret.
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
