"""Finds out whether a directory can be written."""

import tempfile


def write_error(directory: str) -> str | None:
    """Return why no file can be created there, `None` when one can. Creates a temporary file."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return error.strerror or str(error)
