"""The overhead as a table with checks."""

from benchmarks.overhead import SITUATIONS, WARM_UP_S, Costs, Plan
from benchmarks.tables import check, number, table
from benchmarks.trackers import AUTO, PEERS, PROC, PROCFS, PSUTIL, default_tracker


def markdown(situations: dict[str, Costs], runs: int, plan: Plan) -> str:
    """Return the table and its checks."""
    trackers = (PROC, AUTO, PSUTIL, PROCFS)
    rows = []
    for name, costs in situations.items():
        words = SITUATIONS[name]
        rows.append([f"{words}: CPU ms per sample", *(number(costs.cpu_ms(one)) for one in trackers)])
        rows.append([f"{words}: RSS MiB", *(number(costs.rss_mib(one), 1) for one in trackers)])
        rows.append([f"{words}: PSS MiB", *(number(costs.pss_mib(one), 1) for one in trackers)])
    how = (
        f"One sample a second; medians of {runs} windows of {plan.samples} samples (2 GiB resident: one of "
        f"{plan.resident_samples}; `proc` beside `auto`: one), each after {WARM_UP_S:.0f} s of warm-up."
    )
    lines = [table(["situation", *trackers], rows), "", how]
    if not all(costs.is_exact for costs in situations.values()):
        lines.append(
            "No cgroup could be made: CPU from the threads' `schedstat`; that of their children has a grain of 10 ms."
        )
    return "\n".join([*lines, "", *_checks(situations)])


def _checks(situations: dict[str, Costs]) -> list[str]:
    ours = default_tracker()
    cost = {name: costs.cpu_ms(ours) for name, costs in situations.items()}
    better = {
        name: min((ms for ms in map(costs.cpu_ms, PEERS) if ms is not None), default=None)
        for name, costs in situations.items()
    }
    lines = []

    def limit(text: str, value: float | None, most: float | None) -> None:
        if value is not None and most is not None:
            lines.append(check(text, [f"{value:.2f} of {most:.2f} ms"] if value > most else []))

    rest, peer_rest, peer_tree = cost.get("rest"), better.get("rest"), better.get("tree")
    limit("at rest at most 1.3 ms", rest, 1.3)
    limit("at rest at most half the peer's better", rest, None if peer_rest is None else peer_rest / 2)
    limit("with 1,000 foreign processes at most 10 % more", cost.get("foreign"), None if rest is None else rest * 1.1)
    limit(
        "tree of 200 at most a quarter of the peer's better",
        cost.get("tree"),
        None if peer_tree is None else peer_tree / 4,
    )
    limit("2 GiB resident at most 2 ms", cost.get("resident"), 2.0)
    for name, costs in situations.items():
        mib = costs.rss_mib(ours)
        if mib is not None:
            lines.append(check(f"{SITUATIONS[name]}: RSS at most 28 MiB", [f"{mib:.1f} MiB"] if mib > 28 else []))
    return lines
