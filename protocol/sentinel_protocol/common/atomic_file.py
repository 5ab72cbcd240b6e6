"""Files that exist completely or not at all, also after a power failure."""

import contextlib
import os


def write_atomically(path: str, content: bytes, *, replace: bool = True, durable: bool = True) -> None:
    """Write `content` to `path` (mode 0600): a reader sees the old file or the new one, never a part.

    With `replace=False`, an existing file is kept and `FileExistsError` is raised. The file survives a power cut,
    unless `durable=False`. Raises `OSError`. A path has one writer at a time. The next writer overwrites the temporary
    file of one that was killed.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            # Unlike a rename, a link never replaces a file.
            os.link(temporary, path)
            os.unlink(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(directory)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
