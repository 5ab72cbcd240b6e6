"""`python -m chaos.matrix`: what a job may lack or meet, bare against wrapped; one table.

In every cell the same job runs twice: by itself, and through `sentinel-collector`. It reads a line, writes to both
streams, and ends with 7. Exit code, streams and signals have to be the same, and the run is recorded or a line says why
it is not. Needs root for the cells of cgroups, mounts and users.
"""

import contextlib
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fakes import sandbox
from fakes.process_harness import COLLECTOR, Home, home_in, recorders_of

JOB = 'read line; echo "out $line"; echo err >&2; sleep "${S:-0.5}"; echo end; exit 7'
_SIGNALLED = (
    "import os, signal, sys, time\n"
    "signums = {n for n in signal.valid_signals() if n not in (9, 19)}\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, signums)\n"
    "print('ready', flush=True)\n"
    "while (info := signal.sigtimedwait(signums, 1.0)) is not None: print(info.si_signo, flush=True)\n"
    "sys.exit(7)\n"
)
"""Prints the signals that it gets, until a second passes without one."""
_DEADLINE_S = 90.0
_PIDS = Path("/sys/fs/cgroup/pids")
_OURS = "sentinel-collector: "
During = Callable[[subprocess.Popen[bytes]], None]
"""Happens beside the job; gets the process of the command."""


@dataclass
class Cell:
    """One row of the table: `prefix` runs before the command, `during` beside the wrapped one."""

    group: str
    name: str
    prefix: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    during: During | None = None
    during_bare: During | None = None
    job: list[str] = field(default_factory=lambda: ["/bin/sh", "-c", JOB])
    around: Callable[[Home], contextlib.AbstractContextManager[None]] | None = None
    pass_fds: tuple[int, ...] = ()
    exit_only: bool = False
    """The waiter itself dies: nothing but the job's streams can be the same."""


@dataclass
class Outcome:
    """One run of a job."""

    exit_code: int
    out: bytes
    err: bytes
    seconds: float
    said: str = ""
    is_recorded: bool = False


def ulimit(*words: str) -> list[str]:
    return ["/bin/bash", "-c", f'ulimit {" ".join(words)} && exec "$@"', "bash"]


def shell(code: str) -> list[str]:
    return ["/bin/bash", "-c", f'{code}; exec "$@"', "bash"]


def to_recorder(signum: int, after_s: float = 0.25) -> During:
    def send(process: subprocess.Popen[bytes]) -> None:
        time.sleep(after_s)
        for pid in recorders_of(process.pid):
            os.kill(pid, signum)

    return send


def to_command(signum: int) -> During:
    def send(process: subprocess.Popen[bytes]) -> None:
        time.sleep(0.6)
        process.send_signal(signum)

    return send


def to_group(signum: int) -> During:
    def send(process: subprocess.Popen[bytes]) -> None:
        time.sleep(0.6)
        os.killpg(process.pid, signum)

    return send


def kill_recorders(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            for pid in recorders_of(process.pid):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def pids_group(limit: int) -> Iterator[Path]:
    group = _PIDS / f"matrix-{os.getpid()}"
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(limit))
        yield group
    finally:
        deadline = time.monotonic() + 20
        while group.exists() and time.monotonic() < deadline:
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                group.rmdir()
            time.sleep(0.1)


def descriptors() -> Iterator[Cell]:
    for limit in (3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64):
        yield Cell("descriptors", f"limit of {limit}", ulimit("-n", str(limit)))
    for free in (2, 3, 4, 6, 8, 12, 16, 24, 32):
        code = f'ulimit -n 256; for ((fd = 3; fd < {256 - free}; fd++)); do eval "exec $fd</dev/null"; done'
        yield Cell("descriptors", f"{free} free of 256, the others inherited", shell(code))
    yield Cell("descriptors", "an inherited one above the limit", shell("exec 200</dev/null; ulimit -n 64"))
    yield Cell("descriptors", "stdin closed", shell("exec <&-"))
    yield Cell("descriptors", "stdout and stderr closed", shell("exec >&- 2>&-"))


def processes() -> Iterator[Cell]:
    if os.getuid() == 0:
        for limit in (1, 2, 3, 4, 8):
            words = [sys.executable, "-c", _AS_OTHER, str(limit)]
            yield Cell("processes", f"`ulimit -u` {limit} for a user without others", words)
    if _PIDS.is_dir() and os.getuid() == 0:
        for limit in (1, 2, 3, 4, 5, 8):
            code = f"echo $$ >{_PIDS}/matrix-{os.getpid()}/cgroup.procs"
            yield Cell("processes", f"pids cgroup of {limit}", shell(code), around=functools.partial(_grouped, limit))
        code = f"echo $$ >{_PIDS}/matrix-{os.getpid()}/cgroup.procs"
        yield Cell(
            "processes", "pids cgroup of 20 that the job fills", shell(code), job=[sys.executable, "-S", "-c", _FILLS],
            around=functools.partial(_grouped, 20),
        )  # fmt: skip


_FILLS = """
import os, time
try:
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
except OSError:
    pass
time.sleep(1)
os._exit(7)
"""
_AS_OTHER = """
import os, resource, sys
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[1]),) * 2)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def _grouped(limit: int, _home: Home) -> Iterator[None]:
    with pids_group(limit):
        yield


def memory() -> Iterator[Cell]:
    for kib in (20_000, 30_000, 40_000, 60_000, 80_000, 120_000, 200_000, 400_000):
        yield Cell("memory", f"address space of {kib} KiB", ulimit("-v", str(kib)))
    for kib in (2_000, 4_000, 8_000, 12_000, 20_000, 40_000):
        yield Cell("memory", f"data of {kib} KiB", ulimit("-d", str(kib)))
    for kib in (64, 256, 500_000):
        yield Cell("memory", f"stack of {kib} KiB", ulimit("-s", str(kib)))
    yield Cell("memory", "no locked memory", ulimit("-l", "0"))
    yield Cell("memory", "the recorder is killed for memory", during=to_recorder(signal.SIGKILL))


def other_limits() -> Iterator[Cell]:
    yield Cell("limits", "CPU time of 1 s", ulimit("-t", "1"))
    yield Cell("limits", "CPU time used up by the recorder", env={"S": "3"}, during=to_recorder(signal.SIGXCPU))
    for size in (0, 1, 64):
        yield Cell("limits", f"file size of {size} KiB", ulimit("-f", str(size)))
    yield Cell("limits", "no queued signals", ulimit("-i", "0"))
    yield Cell(
        "limits",
        "core files without limit, the recorder aborts",
        ulimit("-c", "unlimited"),
        during=to_recorder(signal.SIGABRT),
    )


def seccomp() -> Iterator[Cell]:
    for code in ("EPERM", "ENOSYS"):
        for name in sandbox.CALLS:
            yield Cell("seccomp", f"`{name}`: {code}", [sys.executable, sandbox.__file__, code, name])


def signals() -> Iterator[Cell]:
    job = [sys.executable, "-c", _SIGNALLED]
    for signum in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT):
        name = signal.Signals(signum).name
        yield Cell("signals", f"{name} to the recorder", during=to_recorder(signum))
    yield Cell("signals", "SIGKILL to each recorder at once", env={"S": "3"}, during=kill_recorders)
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
        if signal.SIGRTMIN < number < signal.SIGRTMAX:
            continue
        name = signal.Signals(number).name
        yield Cell(
            "signals", f"{name} to the command", job=job, during=to_command(number), during_bare=to_command(number)
        )
        yield Cell("signals", f"{name} to the group", job=job, during=to_group(number), during_bare=to_group(number))
    yield Cell("signals", "SIGKILL to the waiter", during=to_command(signal.SIGKILL), exit_only=True, env={"S": "2"})


def environment() -> Iterator[Cell]:
    group = "environment"
    for name, value in {
        "PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere:/dev/null", "PYTHONHASHSEED": "bogus",
        "PYTHONMALLOC": "bogus",
        "PYTHONIOENCODING": "bogus", "PYTHONPLATLIBDIR": "lib64x", "PYTHONWARNINGS": "error", "PYTHONINSPECT": "1",
        "PYTHONOPTIMIZE": "2", "PYTHONDEVMODE": "1", "PYTHONVERBOSE": "1", "PYTHONSTARTUP": "/nowhere",
        "LD_PRELOAD": "/nowhere.so", "LD_LIBRARY_PATH": "/nowhere", "LD_BIND_NOW": "1", "LC_ALL": "xx_XX.bogus",
        "TMPDIR": "/nowhere", "HOME": "/nowhere", "XDG_STATE_HOME": "/nowhere/at/all", "XDG_RUNTIME_DIR": "/nowhere",
    }.items():  # fmt: skip
        yield Cell(group, f"{name}={value}", env={name: value})
    yield Cell(group, "no PATH", shell("unset PATH"))
    yield Cell(group, "an empty environment", ["/usr/bin/env", "-i"])
    yield Cell(group, "working directory removed", shell('mkdir gone; cd gone; rmdir "$PWD"'))


def places() -> Iterator[Cell]:
    if os.getuid():
        return
    for name, path in (("`/tmp`", "/tmp"), ("HOME", "$HOME"), ("state directory", "$XDG_STATE_HOME")):
        for what, options in (("full", "size=4k"), ("read-only", "ro")):
            fill = f'; head -c 100000 /dev/zero >"{path}/x" 2>/dev/null' if what == "full" else ""
            code = f'mkdir -p "{path}"; mount -t tmpfs -o {options} none "{path}"{fill}'
            prefix = ["/usr/bin/unshare", "-m", *shell(code)]
            yield Cell("places", f"{name} {what}", prefix)


def cells() -> Iterator[Cell]:
    for some in (descriptors, processes, memory, other_limits, seccomp, signals, environment, places):
        yield from some()


def run(cell: Cell, home: Home, words: list[str], during: During | None) -> Outcome:
    """Run the cell's job through `words` and return what became of it."""
    began = time.monotonic()
    process = subprocess.Popen(
        [*cell.prefix, *words, *cell.job], env=home.environ | cell.env, cwd=home.directory, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    beside = threading.Thread(target=during, args=(process,)) if during is not None else None
    if beside is not None:
        beside.start()
    try:
        out, err = process.communicate(b"line\n", timeout=_DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    seconds = time.monotonic() - began
    if beside is not None:
        beside.join()
    lines = err.decode("utf-8", "replace").splitlines(keepends=True)
    said = [line.removeprefix(_OURS).strip() for line in lines if line.startswith(_OURS) or "(src/" in line]
    theirs = "".join(line for line in lines if not line.startswith(_OURS) and "(src/" not in line)
    return Outcome(process.returncode, out, theirs.encode(), seconds, "; ".join(said), bool(home.local_runs()))


def row(cell: Cell) -> tuple[bool, str]:
    """Return whether the cell is right, and its row of the table."""
    outcomes = []
    for words, during in (([], cell.during_bare), ([COLLECTOR, "--interval", "0.2", "--wait", "3", "--"], cell.during)):
        directory = Path(tempfile.mkdtemp(prefix="matrix-"))
        directory.chmod(0o777)
        with home_in(directory) as home, cell.around(home) if cell.around else contextlib.nullcontext():
            outcomes.append(run(cell, home, words, during))
        shutil.rmtree(directory, ignore_errors=True)
    bare, wrapped = outcomes
    # A shell's exit code, which is what people see.
    expected = bare.exit_code if bare.exit_code >= 0 else 128 - bare.exit_code
    same_code = cell.exit_only or expected == wrapped.exit_code
    same_streams = (bare.out, bare.err) == (wrapped.out, wrapped.err)
    told = wrapped.is_recorded or bool(wrapped.said)
    right = same_code and same_streams and told
    marks = f"{'same' if same_streams else f'**{wrapped.out!r} {wrapped.err!r} instead of {bare.out!r} {bare.err!r}**'}"
    code = str(wrapped.exit_code) if same_code else f"**{wrapped.exit_code}**"
    kept = "yes" if wrapped.is_recorded else f"no: {wrapped.said[:90] or '**nothing said**'}"
    times = f"{bare.seconds:.1f} / {wrapped.seconds:.1f} s"
    return right, f"| {cell.group} | {cell.name} | {expected} | {code} | {marks} | {times} | {kept.replace('|', ' ')} |"


def main() -> int:
    wanted = sys.argv[1:]
    print("| | cell | bare | wrapped | streams | duration | recorded |\n| --- | --- | ---: | ---: | --- | --- | --- |")
    wrong = total = 0
    # What the matrix limits it may not need itself.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for cell in cells():
        if wanted and cell.group not in wanted:
            continue
        right, line = row(cell)
        total += 1
        wrong += not right
        print(line, flush=True)
    print(f"\n{total} cells, {wrong} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
