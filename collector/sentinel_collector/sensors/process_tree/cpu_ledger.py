"""Counts the tree's CPU time and bytes, each exactly once.

The kernel adds a process' totals to its parent's when the parent waits for it (`cutime`, `cstime`, and the sums in
`/proc/PID/io`; `wait_task_zombie` in the kernel's `exit.c`). So an amount that was counted for a process while it lived
shows up again in its parent. It is *expected* at the nearest living ancestor, and subtracted from that one's growth.

Every account is read before its descendants' accounts. Hence the totals of a vanished process reach its ancestor in the
reading that missed the process, or in the next one, and never while the process can still be read. What is still
expected after the second reading was never passed on (the parent ignores SIGCHLD, or init reaped an orphan). Then
nothing is subtracted: that would take later children's time.

At every moment: counted = the sum of all open accounts + what is expected + the totals that were never passed on. All
amounts are integers: microseconds and bytes.
"""

Amounts = tuple[int, int, int, int]
"""User microseconds, system microseconds, bytes read, bytes written."""

NOTHING: Amounts = (0, 0, 0, 0)


class ProcessAccount:
    """Counts of one process: its own CPU time, its reaped children's, and the bytes of both."""

    __slots__ = ("children", "closed", "expected", "growth", "io", "newly_expected", "own", "parent")

    def __init__(self, parent: "ProcessAccount | None") -> None:
        self.parent = parent
        """The account that gets the totals at the end; `None` when the parent is not in the tree."""
        self.closed = False
        self.own = (0, 0)
        self.children = (0, 0)
        self.io = (0, 0)
        self.growth: Amounts = NOTHING
        """Growth of `children` and `io` in this reading, from which expected amounts are subtracted."""
        self.newly_expected: Amounts = NOTHING
        """Expected since this reading."""
        self.expected: Amounts = NOTHING
        """Expected since the reading before."""


class CpuLedger:
    """Running totals of the tree.

    A reading is: `count_cpu` and `count_io` for every account, parents first; `close` for vanished processes; then
    `end_reading`.
    """

    def __init__(self) -> None:
        self.counted: Amounts = NOTHING
        """Totals since the start. They fall only by amounts that `end_reading` finds counted twice in this reading."""
        self._expecting: set[ProcessAccount] = set()
        self._grown: list[ProcessAccount] = []

    def count_cpu(self, account: ProcessAccount, own: tuple[int, int], children: tuple[int, int]) -> None:
        """Count the growth of `own` and `children` (user and system microseconds)."""
        user, system = children[0] - account.children[0], children[1] - account.children[1]
        if user or system:
            self._grow(account, (max(0, user), max(0, system), 0, 0))
            account.children = children
        before = account.own
        counted = self.counted
        self.counted = (
            counted[0] + own[0] - before[0] + max(0, user),
            counted[1] + own[1] - before[1] + max(0, system),
            counted[2],
            counted[3],
        )
        account.own = own

    def count_io(self, account: ProcessAccount, io: tuple[int, int]) -> None:
        """Count the growth of `io` (bytes read and written, reaped children's included)."""
        growth = (0, 0, max(0, io[0] - account.io[0]), max(0, io[1] - account.io[1]))
        self.counted = _add(self.counted, growth)
        self._grow(account, growth)
        account.io = io

    def close(self, account: ProcessAccount) -> None:
        """The process vanished: its amounts, and those expected at it, are expected at its nearest living ancestor."""
        self._expecting.discard(account)
        account.closed = True
        ancestor = account.parent
        while ancestor is not None and ancestor.closed:
            ancestor = ancestor.parent
        if ancestor is None:
            return
        amounts = (
            account.own[0] + account.children[0],
            account.own[1] + account.children[1],
            account.io[0],
            account.io[1],
        )
        ancestor.newly_expected = _add(
            ancestor.newly_expected, _add(amounts, _add(account.newly_expected, account.expected))
        )
        self._expecting.add(ancestor)

    def close_with_rusage(self, account: ProcessAccount, user_us: int, system_us: int, *, was_final: bool) -> None:
        """This process waited for the process itself and got its exact total, reaped children included.

        `was_final`: the last reading saw a zombie, whose times had stopped. What is still expected was not passed on.
        """
        expected = NOTHING if was_final else _add(account.expected, account.newly_expected)
        rest = (
            user_us - account.own[0] - account.children[0],
            system_us - account.own[1] - account.children[1],
            0,
            0,
        )
        self.counted = _add(self.counted, _less(rest, expected))
        self._expecting.discard(account)
        account.closed = True
        account.parent = None

    def end_reading(self) -> None:
        """Subtract expected amounts that showed up as growth, and forget those from before that did not."""
        for account in list(self._expecting):
            before = _add(account.expected, account.newly_expected)
            forgotten = _less(account.expected, account.growth)
            other_growth = _less(account.growth, account.expected)
            account.expected = _less(account.newly_expected, other_growth)
            account.newly_expected = NOTHING
            counted_twice = _minus(before, _add(forgotten, account.expected))
            self.counted = _minus(self.counted, counted_twice)
            if account.expected == NOTHING:
                self._expecting.discard(account)
        for account in self._grown:
            account.growth = NOTHING
        self._grown.clear()

    def _grow(self, account: ProcessAccount, growth: Amounts) -> None:
        if account.growth == NOTHING:
            self._grown.append(account)
            account.growth = growth
        else:
            account.growth = _add(account.growth, growth)


def _add(one: Amounts, other: Amounts) -> Amounts:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _minus(one: Amounts, other: Amounts) -> Amounts:
    return one[0] - other[0], one[1] - other[1], one[2] - other[2], one[3] - other[3]


def _less(one: Amounts, other: Amounts) -> Amounts:
    """Return `one` less `other`, at least zero."""
    return (
        max(0, one[0] - other[0]),
        max(0, one[1] - other[1]),
        max(0, one[2] - other[2]),
        max(0, one[3] - other[3]),
    )
