"""Names of a run's objects."""


def object_uri(prefix: str, number: int) -> str:
    """Return where object `number` (from 1) of a run goes."""
    return f"{prefix.rstrip('/')}/{number:04d}.csv.gz"
