"""Rows that say whose they are, and the count of them in the objects.

A row's id is its collector's number and its sequence number in one integer. It is the column `system_processes`.
"""

import gzip
import json
import random
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from sentinel_protocol.wire.messages import SamplesRaw, encode
from sentinel_protocol.wire.sample import COLUMNS, CSV_HEADER, Sample, encode_sample

_SEQ_BITS = 32
_HEAD_BYTES = 3 + 9 + 1
"""An encoded `Sample`'s array header, time stamp (double) and `system_processes` (0: one byte)."""
_HEAD = struct.Struct(">3sBdBQ")
_ARRAY_OF_32, _DOUBLE, _UNSIGNED_64 = b"\xdc\x00\x20", 0xCB, 0xCF
_VARIANTS = 64


class RowMaker:
    """Makes messages of rows. The figures of a row differ from the row before as those of a busy job do."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self._tails = [encode_sample(_sample(chance))[_HEAD_BYTES:] for _ in range(_VARIANTS)]

    def message(self, collector: int, first_seq: int, last_seq: int, *, began_at: float, interval_s: float) -> bytes:
        """Return an encoded `Samples`. A row that is sent again is the same to the byte."""
        rows = [
            msgspec.Raw(
                _HEAD.pack(
                    _ARRAY_OF_32,
                    _DOUBLE,
                    round(began_at + seq * interval_s, 3),
                    _UNSIGNED_64,
                    row_id(collector, seq),
                )
                + self._tails[(collector + seq) % _VARIANTS]
            )
            for seq in range(first_seq, last_seq + 1)
        ]
        return encode(SamplesRaw(first_seq, rows))


def row_id(collector: int, seq: int) -> int:
    """Return what tells a row from all others."""
    return collector << _SEQ_BITS | seq


def _sample(chance: random.Random) -> Sample:
    used = chance.uniform(2000, 60000)
    figures = {name: round(chance.uniform(0, 16), 3) for name in COLUMNS}
    figures |= {name: chance.randrange(1 << 24) for name in COLUMNS if name.endswith("_bytes")}
    figures |= {name: round(used * chance.random(), 3) for name in COLUMNS if name.endswith("_mib")}
    figures |= dict.fromkeys(("process_pid", "process_children"), 7) | dict.fromkeys(
        ("system_gpu_utilized", "process_gpu_utilized"), 1
    )
    return Sample(**figures | {"timestamp": 0.0, "system_processes": 0})  # type: ignore[arg-type]


class Count(NamedTuple):
    """How often rows were found that were to be found once each."""

    objects: int
    rows: int
    missing: int
    repeated: int
    unknown: int
    """Rows that were never sent, or that lie in a file that its run does not name."""
    unfinished: int
    """Runs without their end."""

    @property
    def is_exact(self) -> bool:
        """Whether each row is in exactly one object, and each run has its end."""
        return not (self.missing or self.repeated or self.unknown or self.unfinished)


class RowCounter:
    """Counts how often each row was found. `last_seqs` is the last sequence number of each collector's rows."""

    def __init__(self, last_seqs: Mapping[int, int]) -> None:
        self._found = {collector: bytearray(last) for collector, last in last_seqs.items()}
        self._objects = self._repeated = self._unknown = self._unfinished = 0

    def add_object(self, csv: bytes, *, is_named: bool = True) -> None:
        """Count the rows of an object's text."""
        self._objects += 1
        if not csv.startswith(CSV_HEADER) or not is_named:
            self._unknown += csv.count(b"\n")
            return
        for line in csv[len(CSV_HEADER) :].splitlines():
            self._add_row(int(line.split(b",", 2)[1]))

    def add_unfinished_run(self) -> None:
        """Count a run without its end."""
        self._unfinished += 1

    def count(self) -> Count:
        """Return what was found."""
        rows = sum(len(found) - found.count(0) for found in self._found.values())
        missing = sum(found.count(0) for found in self._found.values())
        return Count(self._objects, rows, missing, self._repeated, self._unknown, self._unfinished)

    def _add_row(self, number: int) -> None:
        collector, seq = number >> _SEQ_BITS, number & (1 << _SEQ_BITS) - 1
        found = self._found.get(collector)
        if found is None or not 1 <= seq <= len(found):
            self._unknown += 1
        elif found[seq - 1]:
            self._repeated += 1
        else:
            found[seq - 1] = 1


def count_local_runs(directory: Path, last_seqs: Mapping[int, int]) -> Count:
    """Count the rows in the runs below a directory target."""
    counter = RowCounter(last_seqs)
    for run in _directories(directory):
        described = json.loads((run / "run.json").read_bytes())
        if described.get("state") != "finished":
            counter.add_unfinished_run()
        named = set(described.get("objects", ()))
        for path in sorted(run.glob("*.csv.gz")):
            counter.add_object(gzip.decompress(path.read_bytes()), is_named=path.name in named)
            named.discard(path.name)
        if named:
            counter.add_unfinished_run()
    return counter.count()


def _directories(directory: Path) -> Iterable[Path]:
    return (path for path in directory.iterdir() if path.is_dir())
