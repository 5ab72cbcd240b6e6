"""A disk that answers with an I/O error: a library in front of the C library, for a process that is started with it."""

import shutil
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int fd) {
    const char *flag = getenv("FAILING_DISK_FLAG"), *part = getenv("FAILING_DISK_FILES");
    char link[64], path[4096];
    if (flag == NULL || part == NULL || access(flag, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strstr(path, part) == NULL) return 0;
    FILE *file = fopen(flag, "a");
    if (file != NULL) { fputs("x", file); fclose(file); }
    errno = EIO;
    return 1;
}

#define BEFORE(result, name, parameters, arguments) \
    result name parameters { \
        static result (*real) parameters; \
        if (real == NULL) real = (result (*) parameters) dlsym(RTLD_NEXT, #name); \
        return fails(fd) ? -1 : real arguments; \
    }

BEFORE(ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
BEFORE(ssize_t, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))
BEFORE(ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at))
BEFORE(int, fsync, (int fd), (fd))
BEFORE(int, fdatasync, (int fd), (fd))
"""


class FailingDisk:
    """Writes and syncs of files whose path holds `part` fail with EIO between `break_down` and `repair`.

    `environ` is what the process has to be started with.
    """

    def __init__(self, directory: Path, part: str) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "needs a C compiler (cc or gcc)"
        source, library = directory / "failing_disk.c", directory / "failing_disk.so"
        source.write_text(_SOURCE, encoding="ascii")
        words = [compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(words, check=True, timeout=60)
        self._flag = directory / "disk-fails"
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAILING_DISK_FLAG": str(self._flag),
            "FAILING_DISK_FILES": part,
        }

    def break_down(self) -> None:
        """Let everything fail from now on."""
        self._flag.touch()

    @property
    def failures(self) -> int:
        """How often it has since."""
        return self._flag.stat().st_size if self._flag.exists() else 0

    def repair(self) -> None:
        """Work again."""
        self._flag.unlink()
