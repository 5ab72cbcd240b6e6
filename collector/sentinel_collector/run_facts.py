"""What a run's uploader is told about it."""

from typing import Any

import msgspec


class RunDescription(msgspec.Struct, kw_only=True):
    """What a `Hello` tells about the run; what discovery finds later is filled in."""

    interval_s: float
    metadata: dict[str, Any]
    host: dict[str, str | int | float]
    cloud: dict[str, str]
    cloud_pending: bool
