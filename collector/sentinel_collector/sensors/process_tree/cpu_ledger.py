"""Who has been counted for what: the tree's CPU time and bytes, each exactly once.

The kernel hands a process' totals to its parent when the parent waits for it (`cutime`, `cstime`, and the sums in
`/proc/PID/io`; `wait_task_zombie` in the kernel's `exit.c`). So what was counted for a process while it lived shows
up again in its parent. It is *owed*: by the nearest living ancestor, and taken off that ancestor's next growth.

Every account is read before its descendants' accounts. Hence what a vanished process had reaches its ancestor in the
very reading that missed the process, or in the next one, and never shows up while the process can still be read.
What is owed after the second reading was never handed on (the parent ignores SIGCHLD, or init reaped an
orphan): the process keeps it, and the debt is forgotten instead of swallowing later children's time.

At every moment: counted = sum of all open accounts + what is owed + what was left behind by processes that handed
nothing on. All amounts are integers: microseconds and bytes.
"""

Amounts = tuple[int, int, int, int]
"""User microseconds, system microseconds, bytes read, bytes written."""

NOTHING: Amounts = (0, 0, 0, 0)


class ProcessAccount:
    """What one process was counted for: its own CPU time, its reaped children's, and the bytes of both."""

    __slots__ = ("children", "closed", "expected", "growth", "io", "newly_expected", "own", "parent")

    def __init__(self, parent: "ProcessAccount | None") -> None:
        self.parent = parent
        """The account that inherits; `None` when the parent is not in the tree."""
        self.closed = False
        self.own = (0, 0)
        self.children = (0, 0)
        self.io = (0, 0)
        self.growth: Amounts = NOTHING
        """What may pay debts: this reading's growth of `children` and `io`."""
        self.newly_expected: Amounts = NOTHING
        """Owed since this reading."""
        self.expected: Amounts = NOTHING
        """Owed since the reading before."""


class CpuLedger:
    """Running totals of the tree. One reading is: `count` for every account, parents first; `close` for the vanished;
    `end_reading`."""

    def __init__(self) -> None:
        self.counted: Amounts = NOTHING
        """Totals since the start; they only fall by what `end_reading` finds counted twice in this very reading."""
        self._expecting: set[ProcessAccount] = set()
        self._grown: list[ProcessAccount] = []

    def count_cpu(self, account: ProcessAccount, own: tuple[int, int], children: tuple[int, int]) -> None:
        """Count what `own` and `children` (user and system microseconds) grew by."""
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
        """Count what `io` (bytes read and written, reaped children's included) grew by."""
        growth = (0, 0, max(0, io[0] - account.io[0]), max(0, io[1] - account.io[1]))
        self.counted = _add(self.counted, growth)
        self._grow(account, growth)
        account.io = io

    def close(self, account: ProcessAccount) -> None:
        """The process vanished: what it was counted for, and what it still owed, is owed by its nearest heir."""
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
        """This process waited for the member itself and got its exact total, reaped children included.

        `was_final`: the last reading saw a zombie, whose times had stopped, so what is still due was never handed on.
        """
        due = NOTHING if was_final else _add(account.expected, account.newly_expected)
        rest = (
            user_us - account.own[0] - account.children[0],
            system_us - account.own[1] - account.children[1],
            0,
            0,
        )
        self.counted = _add(self.counted, _less(rest, due))
        self._expecting.discard(account)
        account.closed = True
        account.parent = None

    def end_reading(self) -> None:
        """End of a reading: growth pays what is owed; what was due before and is unpaid is forgotten."""
        for account in list(self._expecting):
            before = _add(account.expected, account.newly_expected)
            unpaid_due = _less(account.expected, account.growth)
            left = _less(account.growth, account.expected)
            account.expected = _less(account.newly_expected, left)
            account.newly_expected = NOTHING
            paid = _minus(before, _add(unpaid_due, account.expected))
            self.counted = _minus(self.counted, paid)
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
    """What of `one` is left after `other`, never below zero."""
    return (
        max(0, one[0] - other[0]),
        max(0, one[1] - other[1]),
        max(0, one[2] - other[2]),
        max(0, one[3] - other[3]),
    )
