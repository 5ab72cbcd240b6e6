"""Tables of the spool's SQLite file and the migrations between versions."""

SCHEMA_VERSION = 3

TOMBSTONES_TABLE = """
CREATE TABLE tombstones (
    id INTEGER PRIMARY KEY,
    name BLOB NOT NULL UNIQUE,
    settled_seq INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    ended_by BLOB,
    run_id TEXT NOT NULL,
    pages INTEGER NOT NULL
);
"""

SCHEMA = f"""{TOMBSTONES_TABLE}
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    ended_at REAL NOT NULL DEFAULT 0,
    record BLOB NOT NULL
);
CREATE INDEX open_runs ON runs (id) WHERE state NOT IN ('finished', 'failed', 'discarded');
CREATE INDEX ended_runs ON runs (ended_at) WHERE state IN ('finished', 'failed', 'discarded');
-- Appended to and deleted from, never ordered by run: a commit dirties few pages however many runs there are.
CREATE TABLE frames (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE batches (
    run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    body BLOB,
    PRIMARY KEY (run, number)
);
CREATE TABLE destinations (
    name TEXT PRIMARY KEY,
    attempts INTEGER NOT NULL,
    next_try_at REAL NOT NULL,
    error TEXT NOT NULL,
    since REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    run INTEGER,
    answer TEXT,
    timeout_s REAL
);
"""

MIGRATIONS = {1: "ALTER TABLE requests ADD COLUMN timeout_s REAL;", 2: TOMBSTONES_TABLE}
"""The SQL that migrates a file of each older version to the next one."""
