"""`python -m chaos.six_faults`: six everyday faults against the peer and against ours, in one harness; one table.

Both track a process of 13 s at 1 Hz and upload every 4 s, with the same stand-ins on loopback: storage over TLS under
its real name (through a proxy that knows no other way), the API over HTTP. Nothing is connected to beyond loopback.
"""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fakes.http_proxy import HttpProxy
from fakes.keyring import Keyring
from fakes.process_harness import COLLECTOR, Home, rows_of_file, wait_until
from fakes.s3 import S3Server
from fakes.sentinel_api import SentinelServer
from fakes.tls import make_authority, server_context

ROOT = Path(__file__).resolve().parent.parent.parent
PEER_PYTHON = ROOT / ".venv-peer" / "bin" / "python"
JOB_S = 13.0
KILL_AFTER_S = 10.0
MIDDLE_S = 6.0
BACK_AFTER_S = 3.0
_STALE_AFTER_S = "4"
_TOKEN = "token-of-the-table"
_HOSTS = ("bucket.s3.amazonaws.com", "bucket.s3.us-east-1.amazonaws.com")


@dataclass
class Backend:
    """The servers of one contestant in one scene."""

    api: SentinelServer
    s3: S3Server
    environ: dict[str, str]

    def outcome(self, taken: int) -> str:
        """Return what has arrived, and what the API believes."""
        arrived = sum(body.count(b"\n") - 1 for body in map(_unpacked, self.s3.objects().values()))
        runs = list(self.api.runs.values())
        ends = [run.finish for run in runs if run.finish is not None]
        arrived += sum(end["data_csv"].count("\n") - 1 for end in ends if "data_csv" in end)
        if not runs:
            belief = "no run at all"
        elif not ends:
            belief = "run never finished"
        else:
            code = ends[0].get("exit_code")
            belief = f"`{ends[0]['run_status']}`, {'no exit code' if code is None else f'exit {code}'}"
        return f"{arrived} of {taken} rows; {belief}"


@dataclass
class Scene:
    """One fault: `begin` sets it up, `middle` is done after some seconds; `kill` kills whoever tracks instead."""

    name: str
    begin: Callable[[Backend], object] = lambda _: None
    middle: Callable[[Backend], object] = lambda _: None
    kill: bool = False
    counts_refreshes: bool = False


def _lasting_503(backend: Backend) -> None:
    # Over some seconds after the job's end: whoever still has the rows can deliver them.
    over_at = time.monotonic() + JOB_S - MIDDLE_S + BACK_AFTER_S
    backend.s3.faults.add("put", code="ServiceUnavailable", until=lambda: time.monotonic() > over_at)


SCENES = (
    Scene("`kill -9` of all that tracks, after 10 s", kill=True),
    Scene("storage answers 503 from the middle on, until 3 s after the end", middle=_lasting_503),
    Scene("`finish` answers 503 once", begin=lambda one: one.api.faults.add("finish", status=503, times=1)),
    Scene("`register` answers 503 once", begin=lambda one: one.api.faults.add("register", status=503, times=1)),
    Scene("credentials revoked in the middle", middle=lambda one: one.api.keyring.revoke_all("ExpiredToken")),
    Scene(
        "credentials that live 6 s",
        begin=lambda one: setattr(one.api.behaviour, "lifetime_s", 6.0),
        counts_refreshes=True,
    ),
)


@contextmanager
def _backend(home: Home) -> Iterator[Backend]:
    authority = make_authority(home.directory)
    context = server_context(authority, *(f"DNS:{host}" for host in _HOSTS))
    keyring = Keyring()
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server(keyring, tls=context, takes_any_type=True))
        api = stack.enter_context(SentinelServer(token=_TOKEN, keyring=keyring, upload_root="s3://bucket/runs"))
        proxy = stack.enter_context(HttpProxy(routes={f"{host}:443": s3.port for host in _HOSTS}))
        environ = {
            "SENTINEL_API_URL": api.url,
            "SENTINEL_API_TOKEN": _TOKEN,
            "HTTPS_PROXY": f"http://{proxy.address}",
            "NO_PROXY": "127.0.0.1",
            "SSL_CERT_FILE": str(authority.certificate),
            "AWS_CA_BUNDLE": str(authority.certificate),
            "PYTHONUNBUFFERED": "1",
        }
        stack.callback(home.close)
        yield Backend(api, s3, environ)


def _peer(scene: Scene, home: Home, backend: Backend) -> tuple[int, str]:
    """Let the peer go through a scene; returns how many samples it had taken, and what else there is to say."""
    words = [str(PEER_PYTHON), str(Path(__file__).with_name("peer_job.py")), str(JOB_S)]
    process = home.start(*words, env=backend.environ, stderr=subprocess.DEVNULL)
    _go_through(scene, backend, process)
    orphans = [pid for pid in home.running() if pid != process.pid] if scene.kill else []
    if scene.kill:
        # They hold its standard output open.
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    return int((out.split() or ["0"])[-1]), f"; {len(orphans)} orphaned trackers keep running" if orphans else ""


def _ours(scene: Scene, home: Home, backend: Backend) -> tuple[int, str]:
    """The same for ours, started as on one machine; a service manager starts a killed uploader again."""
    output = home.directory / "rows.csv"
    words = ("--upload-interval", "4", "--stale-after", _STALE_AFTER_S)
    uploader = home.start_uploader(*words, env=backend.environ)
    job = [sys.executable, "-S", "-c", f"import time; time.sleep({JOB_S})"]
    collector = home.start(COLLECTOR, "--connect", home.address, "--output", str(output), "--", *job)
    _go_through(scene, backend, collector, uploader)
    if scene.kill:
        home.start_uploader(*words, env=backend.environ)
    collector.communicate(timeout=60)
    wait_until(lambda: [run for run in backend.api.runs.values() if run.finish is not None], "the run is finished")
    return len(rows_of_file(output)), ""


def _go_through(scene: Scene, backend: Backend, *processes: "subprocess.Popen[str]") -> None:
    scene.begin(backend)
    time.sleep(MIDDLE_S)
    scene.middle(backend)
    time.sleep(KILL_AFTER_S - MIDDLE_S)
    if scene.kill:
        for process in processes:
            process.kill()
            process.wait()


def _line(scene: Scene, contestant: Callable[[Scene, Home, Backend], tuple[int, str]]) -> str:
    directory = Path(tempfile.mkdtemp(prefix="six-"))
    runtime = Path(tempfile.mkdtemp(prefix="ss-"))
    home = Home(directory, runtime, os.environ)
    try:
        with _backend(home) as backend:
            taken, more = contestant(scene, home, backend)
            if scene.counts_refreshes:
                more += f"; {len(backend.api.requests.of('refresh'))} refresh calls"
            return backend.outcome(taken) + more
    finally:
        shutil.rmtree(directory)
        shutil.rmtree(runtime)


def main() -> int:
    """Print the table; 2 where the peer's environment is missing."""
    if not os.access(PEER_PYTHON, os.X_OK):
        print(f"there is no {PEER_PYTHON.relative_to(ROOT)}: `make faults` builds it", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(max_workers=len(SCENES)) as pool:
        theirs = [pool.submit(_line, scene, _peer) for scene in SCENES]
        peers = [future.result() for future in theirs]
        ours = [future.result() for future in [pool.submit(_line, scene, _ours) for scene in SCENES]]
    print("| fault | peer | ours |\n| --- | --- | --- |")
    for scene, peer, our in zip(SCENES, peers, ours, strict=True):
        print(f"| {scene.name} | {peer} | {our} |")
    return 0


def _unpacked(body: bytes) -> bytes:
    return gzip.decompress(body)


if __name__ == "__main__":
    sys.exit(main())
