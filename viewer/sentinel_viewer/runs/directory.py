"""Runs in a directory of this machine."""

import errno
import os
import stat

from sentinel_viewer.errors import ReadError
from sentinel_viewer.runs.places import DESCRIPTION, in_order, is_object_name


class DirectoryPlace:
    """A `RunPlace` whose runs are the directories directly below `path`."""

    parallel = 1

    def __init__(self, path: str) -> None:
        """`path` need not exist: then it holds no runs."""
        self.uri = os.path.abspath(path)

    def versions(self) -> dict[str, str]:
        """The version is the description's inode, size and time: it is always replaced as a whole."""
        found: dict[str, str] = {}
        try:
            with os.scandir(self.uri) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return found
        except OSError as error:
            raise ReadError(f"cannot read {self.uri}: {error.strerror}") from error
        for name in names:
            directory = f"{self.uri}/{name}"
            try:
                found_file = os.stat(f"{directory}/{DESCRIPTION}")
            except OSError:
                if _holds_objects(directory):
                    found[name] = ""
            else:
                found[name] = f"{found_file.st_ino}-{found_file.st_size}-{found_file.st_mtime_ns}"
        return found

    def read_description(self, name: str) -> bytes | None:
        """Read `run.json`."""
        try:
            return _content(f"{self.uri}/{name}/{DESCRIPTION}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ReadError(f"cannot read {self.locate(name)}: {error.strerror}") from error

    def list_objects(self, name: str) -> dict[str, int]:
        """List the files with rows."""
        try:
            with os.scandir(self.locate(name)) as entries:
                found = {entry.name: entry.stat().st_size for entry in entries if is_object_name(entry.name)}
        except OSError as error:
            raise ReadError(f"cannot read {self.locate(name)}: {error.strerror}") from error
        return in_order(found)

    def read_object(self, name: str, object_name: str) -> bytes:
        """Read a file."""
        path = os.path.join(self.uri, name, object_name)
        try:
            return _content(path)
        except OSError as error:
            raise ReadError(f"cannot read {path}: {error.strerror}") from error

    def locate(self, name: str) -> str:
        """Return the path of the run's directory."""
        return os.path.join(self.uri, name)

    def delete_run(self, name: str) -> None:
        """Delete description and objects. The directory goes too, unless it holds other files."""
        directory = self.locate(name)
        try:
            for file in os.listdir(directory):
                if file == DESCRIPTION or is_object_name(file):
                    os.unlink(os.path.join(directory, file))
            if not os.listdir(directory):
                os.rmdir(directory)
        except OSError as error:
            raise ReadError(f"cannot delete {directory}: {error.strerror}") from error


def _content(path: str) -> bytes:
    """Read a regular file; reading a pipe would never end. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def is_run_directory(path: str) -> bool:
    """Whether the directory is that of one run."""
    return os.path.isfile(os.path.join(path, DESCRIPTION)) or _holds_objects(path)


def _holds_objects(directory: str) -> bool:
    try:
        return any(map(is_object_name, os.listdir(directory)))
    except OSError:
        return False
