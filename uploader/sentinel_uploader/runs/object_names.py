"""Names of a run's objects."""


def object_uri(prefix: str, number: int) -> str:
    """Return the URI of a run's object `number` (from 1)."""
    return f"{prefix.rstrip('/')}/{number:04d}.csv.gz"
