"""Changes of several threads in one transaction."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import pytest
from fakes.process_harness import wait_until

from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.group_commit import Apply, GroupCommit


class Notes:
    """A table of words, the same words in memory, and how the transactions came."""

    def __init__(self, directory: Path) -> None:
        self.database = Database(str(directory), max_bytes=1 << 20)
        self.database.connection.execute("CREATE TABLE words (word TEXT)")
        self.lock = threading.RLock()
        self.commits = GroupCommit(self.database, self.lock)
        self.in_memory: list[str] = []
        self.transactions: list[list[str]] = []
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self.database.connection.set_trace_callback(self._watch)

    def write(self, word: str, *, fault: Exception | None = None) -> Callable[[sqlite3.Connection], Apply]:
        def write(connection: sqlite3.Connection) -> Apply:
            connection.execute("INSERT INTO words VALUES (?)", (word,))
            if fault is not None:
                raise fault
            return lambda: self.in_memory.append(word)

        return write

    def begin(self, word: str, keys: Set[object], *, fault: Exception | None = None) -> None:
        """Ask for a change in a thread of its own, and wait until it is in the queue."""

        def commit() -> None:
            try:
                self.commits.commit(keys, self.write(word, fault=fault))
            except ValueError as error:
                self.errors.append(error)

        waiting = len(self.commits._waiting)
        self._threads.append(threading.Thread(target=commit))
        self._threads[-1].start()
        wait_until(lambda: len(self.commits._waiting) > waiting, "it waits")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)

    def stored(self) -> list[str]:
        return [word for (word,) in self.database.query("SELECT word FROM words ORDER BY rowid")]

    def _watch(self, statement: str) -> None:
        if statement.startswith("BEGIN"):
            self.transactions.append([])
        elif statement.startswith("INSERT"):
            self.transactions[-1].append(statement.split("'")[1])


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Notes]:
    made = Notes(tmp_path)
    yield made
    made.join()
    made.database.connection.set_trace_callback(None)
    made.database.close()


def test_changes_that_wait_are_committed_together(notes: Notes) -> None:
    with notes.lock:
        for word in ("one", "two", "three"):
            notes.begin(word, {word})
    notes.join()
    assert len(notes.transactions) == 1
    assert sorted(notes.stored()) == sorted(notes.in_memory) == ["one", "three", "two"]


def test_changes_with_a_key_in_common_follow_each_other(notes: Notes) -> None:
    with notes.lock:
        notes.begin("one", {1})
        notes.begin("two", {1, 2})
        notes.begin("three", {3})
    notes.join()
    assert len(notes.transactions) == 2
    together = {frozenset(words) for words in notes.transactions}
    assert frozenset({"one", "two"}) not in together
    assert sorted(notes.in_memory) == ["one", "three", "two"]


def test_one_that_fails_concerns_no_other(notes: Notes) -> None:
    with notes.lock:
        notes.begin("one", {1})
        notes.begin("bad", {2}, fault=ValueError("no"))
        notes.begin("three", {3})
    notes.join()
    assert [str(error) for error in notes.errors] == ["no"]
    assert sorted(notes.stored()) == sorted(notes.in_memory) == ["one", "three"]


def test_who_holds_the_lock_has_a_change_committed_at_once(notes: Notes) -> None:
    with notes.lock:
        notes.begin("later", {1})
        notes.commits.commit({1}, notes.write("now"))
        assert notes.stored() == ["now"]
    notes.join()
    assert notes.stored() == ["now", "later"]


def test_nothing_changes_in_memory_before_the_commit(notes: Notes) -> None:
    def write(connection: sqlite3.Connection) -> Apply:
        connection.execute("INSERT INTO words VALUES ('word')")
        assert not notes.in_memory
        return lambda: notes.in_memory.append("word")

    notes.database.connection.set_trace_callback(None)
    notes.commits.commit({1}, write)
    assert notes.in_memory == notes.stored() == ["word"]
