"""The accuracy runs as a table with checks."""

from collections.abc import Callable

from benchmarks.accuracy import AUTO_REAPED, CPU, DISK, MEMORY, Accuracy, Results, cpu_s, memory_mib, written_bytes
from benchmarks.measure import rows_above_machine
from benchmarks.tables import UNKNOWN, check, deviation, number, table
from benchmarks.trackers import AUTO, OURS, PROC, PROCFS, PSUTIL, Record, default_tracker


def markdown(accuracy: Accuracy) -> str:
    """Return the table and its checks."""
    results, lateness = accuracy.results, accuracy.lateness
    trackers = (PROC, AUTO, PSUTIL, PROCFS)
    rows = []
    for name, result in results.items():
        if name in CPU:
            rows.append(_row(CPU[name], result, "cpu_s", cpu_s, 1e3, "ms", lambda truth: f"{truth:.3f} s"))
        elif name == MEMORY:
            words = "300 MiB private + 200 MiB shared"
            rows.append(_row(words, result, "memory_mib", memory_mib, 1, "MiB", lambda truth: f"{truth:.1f} MiB"))
        else:
            words = "200 MiB written, fsync"
            rows.append(
                _row(
                    words, result, "written_bytes", written_bytes, 1 / (1 << 20), "MiB", lambda truth: f"{truth:.0f} B"
                )
            )
    above = {tracker: _above(results, tracker) for tracker in trackers}
    rows.append(["rows with more CPU than there is", "0", *(number(above[tracker], 0) for tracker in trackers)])
    if lateness:
        late = (number(lateness.get(tracker), 2) for tracker in trackers)
        rows.append(["sample times, p99 deviation (ms)", "0", *late])
    used = {run.records[AUTO].accounting for result in results.values() for run in result.runs if AUTO in run.records}
    lines = [table(["workload", "truth", *trackers], rows), ""]
    if used:
        lines.append(f"Accounting that `auto` has chosen: {', '.join(sorted(used))}.")
    else:
        lines.append("This collector has no `--accounting`: it has the ledger only.")
    lines += ["", *_checks(results, above, lateness)]
    return "\n".join(lines)


def _row(
    words: str,
    result: Results,
    name: str,
    of: Callable[[Record], float],
    scale: float,
    unit: str,
    say: Callable[[float], str],
) -> list[str]:
    truth = result.truth(name)
    if truth is None:
        return [words, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    cells = []
    for tracker in (PROC, AUTO, PSUTIL, PROCFS):
        part = result.relative(tracker, name, of)
        cells.append(deviation(None if part is None else part * truth, truth, unit, scale))
    return [words, say(truth), *cells]


def _above(results: dict[str, Results], tracker: str) -> float | None:
    counts = [
        rows_above_machine(run.records[tracker].process, run.began_at)
        for result in results.values()
        for run in result.runs
        if tracker in run.records
    ]
    return sum(counts) if counts else None


def _checks(
    results: dict[str, Results], above: dict[str, float | None], lateness: dict[str, float | None]
) -> list[str]:
    lines = []
    for tracker in OURS:
        lines += _cpu_checks({name: result for name, result in results.items() if name in CPU}, tracker)
    for name, key, of, limit in (
        (MEMORY, "memory_mib", memory_mib, 0.02),
        (DISK, "written_bytes", written_bytes, 0.01),
    ):
        for tracker in OURS:
            if name in results and (part := results[name].relative(tracker, key, of)) is not None:
                failed = [f"{part - 1:+.2%}"] if abs(part - 1) > limit else []
                lines.append(check(f"{tracker}: {key} within {limit:.0%}", failed))
    too_many = [f"{tracker}: {above[tracker]:.0f}" for tracker in OURS if above[tracker]]
    lines.append(check("no row with more CPU than there is", too_many))
    best = default_tracker()
    if lateness and (late := lateness.get(best)) is not None:
        lines.append(check(f"{best}: sample times within 5 ms at p99", [f"{late:.1f} ms"] if late > 5 else []))
    return lines


def _cpu_checks(results: dict[str, Results], tracker: str) -> list[str]:
    """Compare with the truth where it is known. Children without a waiting parent are visible only with a cgroup."""
    wrong: dict[bool, list[str]] = {}
    for name, result in results.items():
        part, truth = result.relative(tracker, "cpu_s", cpu_s), result.truth("cpu_s")
        is_reaped_unseen = name in AUTO_REAPED
        if part is None or truth is None or (is_reaped_unseen and not result.uses_cgroup(tracker)):
            continue
        limit_s = 0.03 * truth if is_reaped_unseen else max(0.01 * truth, 0.03)
        failed = wrong.setdefault(is_reaped_unseen, [])
        if abs(part - 1) * truth > limit_s:
            failed.append(f"{CPU[name]} {part - 1:+.1%}")
    words = {False: "CPU within 1 % or 30 ms", True: "CPU of children that the kernel reaps within 3 %"}
    return [check(f"{tracker}: {words[which]}", failed) for which, failed in sorted(wrong.items())]
