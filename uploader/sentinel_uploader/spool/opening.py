"""Opens a spool, whatever state it is in."""

import logging

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.spool.database import SCHEMA_VERSION, Database, SpoolDamagedError
from sentinel_uploader.spool.store import Spool

log = logging.getLogger(__name__)


def open_spool(directory: str, *, max_bytes: int, clock: Clock) -> Spool:
    """Open the spool in a directory that is locked already; one that cannot be read is set aside and reported.

    Raises `SpoolError` for what cannot be opened at all, `UsageError` for a limit that is too small.
    """
    database = Database(directory, max_bytes=max_bytes)
    try:
        try:
            spool = Spool(database, clock=clock)
        except SpoolDamagedError as error:
            log.error("spool cannot be read error=%s", error)  # noqa: TRY400 -- no defect, no trace
            database.recreate()
            spool = Spool(database, clock=clock)
    except BaseException:
        database.close()
        raise
    if database.migrated_from is not None:
        log.info("spool of an older version migrated from=%d to=%d", database.migrated_from, SCHEMA_VERSION)
    if database.quarantined_path is not None:
        log.error("spool is damaged and set aside, nothing in it is deleted file=%s", database.quarantined_path)
    return spool
