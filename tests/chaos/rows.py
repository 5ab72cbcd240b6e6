"""Is every row in exactly one object, in order and as it was sampled, and is nothing there that nobody sampled?"""

from collections import Counter
from collections.abc import Iterator

from chaos.collected_state import CollectedState, Told
from chaos.record import Generation, Part

MEMORY_S = 2.0
"""So young a row may be in a collector's memory alone, and go with it."""
SLACK_S = 0.3
"""Between the file's row and its way into memory, where its age begins."""


def check_rows(state: CollectedState) -> Iterator[str]:
    """Yield a line for every run whose rows are not what they must be; counts rows in the figures."""
    counts = Counter(row for told in state.told for row in told.rows)
    figures = state.figures
    figures["rows delivered"] = sum(counts.values())
    figures["rows lost"] = figures["acknowledged rows lost"] = 0
    figures["rows doubled"] = sum(counts.values()) - len(counts)
    if figures["rows doubled"]:
        yield f"{figures['rows doubled']} rows were delivered more than once"
    for name in state.unknown:
        yield f"a run {name!r} was registered that nobody has begun"
    for generation in state.generations:
        yield from _generation(state, generation)
    for run_key, rows in state.acknowledged.items():
        figures["rows acknowledged"] += len(rows)
        if lost := len(rows - counts.keys()):
            figures["acknowledged rows lost"] += lost
            yield f"{run_key}: {lost} acknowledged rows are in no object"


def _generation(state: CollectedState, generation: Generation) -> Iterator[str]:
    """Compare what one run's collectors sampled with what was delivered under its name."""
    sampled = [row for part in generation.parts for row in part.rows]
    state.figures["rows sampled"] += len(sampled)
    place = {row: number for number, row in enumerate(sampled)}
    told = [one for one in state.told if one.name == generation.name]
    # A collector that was killed while it ended may find its run closed, and goes on as another.
    told.sort(key=lambda one: min((place.get(row, -1) for row in one.rows), default=len(sampled)))
    arrived = [row for one in told for row in one.rows]
    known = set(arrived)
    if invented := len(known - place.keys()):
        yield f"{generation.name}: {invented} rows were delivered that nobody has sampled"
    if [place[row] for row in arrived if row in place] != sorted({place[row] for row in arrived if row in place}):
        yield f"{generation.name}: {len(arrived)} rows were delivered out of order"
    yield from _timestamps(told)
    if generation.abandoned or state.has_moved(generation.name):
        # Nobody may have brought what was in doubt before the part that it belongs to was closed.
        known |= state.kept
    for number, part in enumerate(generation.parts):
        lost, excusable = lost_rows(part, known)
        state.figures["rows in a killed collector's memory"] += excusable
        state.figures["rows lost"] += lost
        if lost:
            yield f"{generation.name}: {lost} rows of part {number} (killed: {part.was_killed}) are lost"
    yield from _continued(generation)


def lost_rows(part: Part, known: set[str]) -> tuple[int, int]:
    """Return how many rows are lost, and how many more went with the memory of a killed collector."""
    missing = [number for number, row in enumerate(part.rows) if row not in known]
    if not missing:
        return 0, 0
    is_tail = missing == list(range(missing[0], len(part.rows)))
    if not part.was_killed or not is_tail:
        return len(missing), 0
    # The collector has looked at the age of what it holds in memory after the row before the last one, at the latest.
    looked_at = part.not_before[max(0, len(part.rows) - 2)]
    lost = sum(1 for number in missing if part.not_after[number] < looked_at - MEMORY_S - SLACK_S)
    return lost, len(missing) - lost


def _timestamps(told: list[Told]) -> Iterator[str]:
    for one in told:
        stamps = [float(row.partition(",")[0]) for row in one.rows]
        if stamps != sorted(set(stamps)):
            yield f"{one.name}: time stamps do not increase"


def _continued(generation: Generation) -> Iterator[str]:
    """A collector that continues a run appends to `--output`; one that finds it ended begins the file anew."""
    may_begin_anew = True
    for number, part in enumerate(generation.parts):
        if part.was_replaced and not may_begin_anew:
            yield f"{generation.name}: part {number} has replaced --output instead of continuing it"
        if part.rows or part.was_replaced:
            may_begin_anew = part.was_ending
        elif part.was_ending:
            may_begin_anew = True


def check_objects(state: CollectedState) -> Iterator[str]:
    """Yield what is wrong with the objects: `finish` names exactly what is stored, numbered without gaps."""
    named = [uri for told in state.told for uri in told.uris]
    stored = set(state.versions)
    if len(named) != len(set(named)) or set(named) != stored:
        yield f"finish names {len(named)} objects, {len(stored)} are stored: {sorted(set(named) ^ stored)[:5]}"
    for told in state.told:
        if told.uris != [f"{told.prefix}/{number:04d}.csv.gz" for number in range(1, len(told.uris) + 1)]:
            yield f"{told.name}: objects are not numbered from 0001 without gaps: {told.uris}"
    for uri, bodies in state.versions.items():
        if len(set(bodies)) > 1:
            yield f"{uri} was stored with different bytes"
