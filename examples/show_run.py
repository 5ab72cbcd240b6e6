"""Shows a delivered run: its figures, its files, and its CPU and memory over time, from the objects themselves.

usage: show_run.py SUMMARY.json (as `sentinel-collector --summary-json` writes it)
"""

import csv
import gzip
import json
import os
import sys

BARS = " ▁▂▃▄▅▆▇█"


def sparkline(values: list[float]) -> str:
    """Draw values as a line of bars, the highest one full."""
    highest = max(values, default=0.0) or 1.0
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] for value in values)


def main(path: str) -> int:
    """Print the run; 1 when it was not delivered or rows are missing."""
    with open(path, encoding="utf-8") as file:
        summary = json.load(file)
    if not summary["delivered"]:
        print("the run is not delivered yet", file=sys.stderr)
        return 1
    rows: list[dict[str, str]] = []
    for name in summary["objects"]:
        with gzip.open(name, "rt", encoding="utf-8") as opened:
            rows += list(csv.DictReader(opened))
    for column, unit in (("process_cpu_usage", "cores"), ("process_memory_mib", "MiB")):
        values = [float(row[column]) for row in rows if row[column]]
        print(f"{column:20} {sparkline(values)}  max of the rows {max(values, default=0):.2f} {unit}")
    print(
        'The rows sample memory once an interval. The summary\'s "memory at most" includes peaks between two samples.'
    )
    cpu_seconds = sum(float(row["process_utime"]) + float(row["process_stime"]) for row in rows)
    print(f"{len(rows)} rows, {cpu_seconds:.2f} CPU seconds, in {summary['location']}:")
    for name in sorted(os.listdir(summary["location"])):
        print(f"  {name}  {os.path.getsize(os.path.join(summary['location'], name))} bytes")
    return 0 if len(rows) == summary["rows"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
