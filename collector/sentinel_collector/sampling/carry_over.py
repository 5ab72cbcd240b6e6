"""Carries growth that a row may not show into the next row, so that no growth is lost."""


class CpuCarryOver:
    """CPU microseconds for rows: no row shows more than the machine has.

    Counters tick every 10 ms and are not all read in the same instant. A row of a fully busy machine would show a few
    ticks too many.
    """

    __slots__ = ("_system_us", "_user_us")

    def __init__(self) -> None:
        self._user_us = self._system_us = 0

    def for_row(self, grown_us: tuple[int, int], limit_us: int | None) -> tuple[int, int]:
        """Add growth and return the part that this row shows: at most `limit_us` (`None`: no limit), at least 0."""
        self._user_us += grown_us[0]
        self._system_us += grown_us[1]
        user, system = max(0, self._user_us), max(0, self._system_us)
        if limit_us is not None and user + system > limit_us:
            user = user * limit_us // (user + system)
            system = limit_us - user
        self._user_us -= user
        self._system_us -= system
        return user, system


class ByteCarryOver:
    """Bytes for rows: an excess in one row is taken off the next ones. No row shows less than 0."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def for_row(self, grown: int | None) -> int | None:
        """Add growth and return the part that this row shows; `None` stays `None`."""
        if grown is None:
            return None
        self._bytes += grown
        shown = max(0, self._bytes)
        self._bytes -= shown
        return shown
