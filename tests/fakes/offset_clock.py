"""The machine's clocks, set wrong on purpose."""

from sentinel_protocol.common.clock import SystemClock


class OffsetClock(SystemClock):
    """`wall_s` and `monotonic_s` are added to what the machine's clocks say; tests change them."""

    def __init__(self, *, wall_s: float = 0.0, monotonic_s: float = 0.0) -> None:
        self.wall_s = wall_s
        self.monotonic_s = monotonic_s

    def now(self) -> float:
        return super().now() + self.wall_s

    def monotonic(self) -> float:
        return super().monotonic() + self.monotonic_s
