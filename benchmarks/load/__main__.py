"""`python -m benchmarks.load [options]`: what one uploader costs under N collectors, and whether each row arrives once.

Markdown on stdout, progress on stderr. The exit code is 0 when each row is in exactly one object.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.load.crowd import Crowd
from benchmarks.load.player import Part, Report
from benchmarks.load.rows import Count, count_local_runs
from benchmarks.load.uploader import LoadedUploader, Usage
from benchmarks.workspace import BenchmarkError, Workspace
from sentinel_protocol.wire.curve_keys import read_key_pair
from sentinel_uploader.server.key_store import KeyStore

_COLLECTORS_PER_KEY = 100
_ROOM_S = 600.0
"""The generator's processes end so long after the measured time in any case."""


def main() -> int:
    """Run the command line."""
    options = _options()
    try:
        with Workspace() as workspace:
            figures = _measure(workspace, options)
            if options.keep_log:
                for log in workspace.directory.glob("*.log"):
                    shutil.copy(log, options.keep_log)
    except BenchmarkError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("stopped, everything is cleaned up")
        return 130
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
    return 0 if figures["exactly once"] is True else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    add = parser.add_argument
    add("--collectors", type=int, default=1000, metavar="N")
    add("--rate", type=float, default=1.0, metavar="ROWS", help="rows a second of each; 0: as many as are acknowledged")
    add("--rows", type=int, default=1, metavar="N", help="rows in a message")
    add("--duration", type=float, default=20.0, metavar="SECONDS", help="measured time")
    add("--settle", type=float, default=3.0, metavar="SECONDS", help="time between the last connection and that")
    add("--ramp", type=float, default=0.0, metavar="N", help="new collectors a second; 0: all at once")
    add("--storm", action="store_true", help="kill the uploader in the middle: all come back at once")
    add("--stall", type=float, default=0.0, metavar="SECONDS", help="nothing can be written to the spool in the middle")
    add("--reconnects", type=float, default=0.0, metavar="N", help="connections a second that are opened anew")
    add("--keys", action="store_true", help=f"encrypt; a client key for every {_COLLECTORS_PER_KEY} collectors")
    add("--processes", type=int, default=0, metavar="N", help="of the generator; default: one for 2,500 collectors")
    add("--upload-interval", type=float, default=60.0, metavar="SECONDS")
    add("--uploader", default="", metavar="WORDS", help="more options of the uploader")
    add("--json", metavar="FILE", help="append the figures to a file, too")
    add("--keep-log", metavar="DIR", help="copy the uploader's log there")
    options = parser.parse_args()
    if options.collectors < 1 or options.rows < 1 or options.rate < 0:
        parser.error("--collectors, --rows: at least 1; --rate: at least 0")
    options.processes = options.processes or max(1, -(-options.collectors // 2500))
    return options


def _measure(workspace: Workspace, options: argparse.Namespace) -> dict[str, Any]:
    keys_dir = workspace.directory / "keys" if options.keys else None
    server_key, client_keys = _make_keys(keys_dir, options.collectors)
    words = ["--upload-interval", str(options.upload_interval), "--max-client-connections", str(options.collectors + 8)]
    uploader = LoadedUploader(workspace, [*words, *options.uploader.split()], keys_dir=keys_dir)
    uploader.start()
    part = Part(
        url=uploader.url,
        first=1,
        collectors=options.collectors,
        rows_per_s=options.rate,
        rows_per_message=options.rows,
        ends_at=time.monotonic() + options.settle + options.duration + _ROOM_S,
        server_key=server_key,
        client_keys=client_keys,
    )
    with Crowd(workspace, part, options.processes) as crowd:
        crowd.report()
        figures = _ramp(crowd, uploader, options)
        time.sleep(options.settle)
        figures |= _window(crowd, uploader, options)
        figures |= _end(crowd, uploader, options.collectors)
        last_seqs = crowd.last_seqs()
    uploader.stop()
    _say("counting the rows in the objects")
    return figures | _counted(count_local_runs(uploader.runs, last_seqs))


def _ramp(crowd: Crowd, uploader: LoadedUploader, options: argparse.Namespace) -> dict[str, Any]:
    before = uploader.usage()
    crowd.tell_share("open", options.ramp)
    report, took_s = crowd.wait_until(
        lambda report: report.welcome == options.collectors, within_s=_ROOM_S / 4, meanwhile=uploader.check
    )
    if report.welcome < options.collectors:
        raise BenchmarkError(f"only {report.welcome} of {options.collectors} collectors are connected")
    after = uploader.usage()
    _say(f"all connected after {took_s:.1f} s")
    return {
        "collectors": options.collectors,
        "rows/s offered": options.collectors * options.rate or "as acknowledged",
        "rows a message": options.rows,
        "all connected after (s)": round(took_s, 1),
        "CPU to connect (s)": round(after.cpu_s - before.cpu_s, 2),
        "hellos to connect": report.hellos,
    }


def _window(crowd: Crowd, uploader: LoadedUploader, options: argparse.Namespace) -> dict[str, Any]:
    crowd.tell_share("reconnects", options.reconnects)
    crowd.report()
    before, crowd_before_s, first = uploader.usage(), crowd.meter.cpu_s(), crowd.report()
    peak = before
    figures: dict[str, Any] = {}
    report = first
    ends_at = before.at + options.duration
    storm_at = before.at + options.duration / 2 if options.storm else ends_at
    stall_at = before.at + 1.0 if options.stall else ends_at
    while (now := time.monotonic()) < ends_at:
        if now >= storm_at:
            storm_at = ends_at
            figures = _storm(crowd, uploader, options.collectors)
        if now >= stall_at:
            stall_at = ends_at
            peak = _peak(peak, uploader.stall(options.stall))
        time.sleep(min(0.5, ends_at - now))
        uploader.check()
        report = _merged(report, crowd.report())
        peak = _peak(peak, uploader.usage(counts=False))
    after, crowd_after_s = uploader.usage(), crowd.meter.cpu_s()
    crowd.tell("reconnects")
    return figures | _figures(before, after, _peak(peak, after), first, report, crowd_after_s - crowd_before_s)


def _storm(crowd: Crowd, uploader: LoadedUploader, collectors: int) -> dict[str, Any]:
    """Kill the uploader, start it again, and wait until every row that was made before is acknowledged."""
    uploader.kill()
    made = crowd.report().made
    start_s = uploader.start()
    report, took_s = crowd.wait_until(
        lambda report: report.acked >= made and report.welcome == collectors,
        within_s=_ROOM_S / 4,
        meanwhile=uploader.check,
    )
    _say(f"{report.welcome} are back after {took_s:.1f} s")
    return {"restart (s)": round(start_s, 2), "all acknowledged after the restart (s)": round(took_s, 1)}


def _figures(before: Usage, after: Usage, peak: Usage, first: Report, last: Report, crowd_s: float) -> dict[str, Any]:
    seconds, cpu_s = after.at - before.at, after.cpu_s - before.cpu_s
    rows = last.acked - first.acked

    def milliseconds(percent: float) -> float:
        return round((last.latencies.percentile_s(percent) or 0.0) * 1e3, 1)

    return {
        "seconds": round(seconds, 1),
        "rows/s acknowledged": round(rows / seconds),
        "ack p50 (ms)": milliseconds(50),
        "ack p99 (ms)": milliseconds(99),
        "ack p99.9 (ms)": milliseconds(99.9),
        "cores": round(cpu_s / seconds, 3),
        "cores, ZeroMQ's thread": round((after.io_thread_cpu_s - before.io_thread_cpu_s) / seconds, 3),
        "µs a row": round(cpu_s / max(1, rows) * 1e6, 1),
        "RSS (MiB)": round(before.rss_mib, 1),
        "RSS, highest (MiB)": round(peak.rss_mib, 1),
        "descriptors": peak.descriptors,
        "spool, largest (MiB)": round(peak.spool_mib, 1),
        "commits/s": round((after.commits - before.commits) / seconds, 1),
        "objects/s": round((after.objects - before.objects) / seconds, 1),
        "PUTs/s": round((after.puts - before.puts) / seconds, 1),
        "hellos in it": last.hellos - first.hellos,
        "rejects in it": last.rejects - first.rejects,
        "generator, cores": round(crowd_s / seconds, 2),
    }


def _end(crowd: Crowd, uploader: LoadedUploader, collectors: int) -> dict[str, Any]:
    _say("the collectors finish")
    before = uploader.usage()
    crowd.tell("finish")
    report, took_s = crowd.wait_until(
        lambda report: report.finished == collectors, within_s=_ROOM_S / 2, meanwhile=uploader.check
    )
    after = uploader.usage()
    _say(f"{report.finished} of {collectors} runs are delivered {took_s:.1f} s later {report.refusals or ''}")
    return {
        "delivered after the end (s)": round(took_s, 1),
        "CPU of the end (s)": round(after.cpu_s - before.cpu_s, 2),
        "refused": len(report.refusals),
    }


def _counted(count: Count) -> dict[str, Any]:
    return {"objects": count.objects, "rows": count.rows} | (
        {"exactly once": True}
        if count.is_exact
        else {"exactly once": f"NO: {', '.join(f'{name} {value}' for name, value in count._asdict().items())}"}
    )


def _merged(report: Report, later: Report) -> Report:
    report.latencies.merge(later.latencies)
    return later._replace(latencies=report.latencies)


def _peak(one: Usage, other: Usage) -> Usage:
    return other._replace(
        rss_mib=max(one.rss_mib, other.rss_mib),
        descriptors=max(one.descriptors, other.descriptors),
        spool_mib=max(one.spool_mib, other.spool_mib),
    )


def _make_keys(directory: Path | None, collectors: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    if directory is None:
        return b"", []
    store = KeyStore(str(directory))
    server_key = store.init()
    pairs = [
        read_key_pair(store.add(f"client-{number}", replace=False))
        for number in range(-(-collectors // _COLLECTORS_PER_KEY))
    ]
    return server_key, [(pair.public, pair.secret) for pair in pairs]


def _say(text: str) -> None:
    print(f"load: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
