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


class Account:
    """What one process was counted for: its own CPU time, its reaped children's, and the bytes of both."""

    __slots__ = ("children", "closed", "due", "grown", "io", "owed", "own", "parent")

    def __init__(self, parent: "Account | None") -> None:
        self.parent = parent
        """The account that inherits; `None` when the parent is not in the tree."""
        self.closed = False
        self.own = (0, 0)
        self.children = (0, 0)
        self.io = (0, 0)
        self.grown: Amounts = NOTHING
        """What may pay debts: this reading's growth of `children` and `io`."""
        self.owed: Amounts = NOTHING
        """Owed since this reading."""
        self.due: Amounts = NOTHING
        """Owed since the reading before."""


class Ledger:
    """Running totals of the tree. One reading is: `count` for every account, parents first; `close` for the vanished;
    `settle`."""

    def __init__(self) -> None:
        self.counted: Amounts = NOTHING
        """Totals since the start; they only fall by what `settle` finds counted twice in this very reading."""
        self._debtors: set[Account] = set()
        self._grown: list[Account] = []

    def count_cpu(self, account: Account, own: tuple[int, int], children: tuple[int, int]) -> None:
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

    def count_io(self, account: Account, io: tuple[int, int]) -> None:
        """Count what `io` (bytes read and written, reaped children's included) grew by."""
        growth = (0, 0, max(0, io[0] - account.io[0]), max(0, io[1] - account.io[1]))
        self.counted = _add(self.counted, growth)
        self._grow(account, growth)
        account.io = io

    def close(self, account: Account) -> None:
        """The process vanished: what it was counted for, and what it still owed, is owed by its nearest heir."""
        self._debtors.discard(account)
        account.closed = True
        heir = account.parent
        while heir is not None and heir.closed:
            heir = heir.parent
        if heir is None:
            return
        amounts = (
            account.own[0] + account.children[0],
            account.own[1] + account.children[1],
            account.io[0],
            account.io[1],
        )
        heir.owed = _add(heir.owed, _add(amounts, _add(account.owed, account.due)))
        self._debtors.add(heir)

    def close_exactly(self, account: Account, user_us: int, system_us: int, *, was_final: bool) -> None:
        """This process waited for the member itself and got its exact total, reaped children included.

        `was_final`: the last reading saw a zombie, whose times had stopped, so what is still due was never handed on.
        """
        due = NOTHING if was_final else _add(account.due, account.owed)
        rest = (
            user_us - account.own[0] - account.children[0],
            system_us - account.own[1] - account.children[1],
            0,
            0,
        )
        self.counted = _add(self.counted, _less(rest, due))
        self._debtors.discard(account)
        account.closed = True
        account.parent = None

    def settle(self) -> None:
        """End of a reading: growth pays what is owed; what was due before and is unpaid is forgotten."""
        for account in list(self._debtors):
            before = _add(account.due, account.owed)
            unpaid_due = _less(account.due, account.grown)
            left = _less(account.grown, account.due)
            account.due = _less(account.owed, left)
            account.owed = NOTHING
            paid = _minus(before, _add(unpaid_due, account.due))
            self.counted = _minus(self.counted, paid)
            if account.due == NOTHING:
                self._debtors.discard(account)
        for account in self._grown:
            account.grown = NOTHING
        self._grown.clear()

    def _grow(self, account: Account, growth: Amounts) -> None:
        if account.grown == NOTHING:
            self._grown.append(account)
            account.grown = growth
        else:
            account.grown = _add(account.grown, growth)


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
