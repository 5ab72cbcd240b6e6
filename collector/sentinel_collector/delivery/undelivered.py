"""What is said at the end of samples that no uploader has confirmed: why, where they are, what becomes of them."""

from sentinel_collector.console import BE, WAIT, pluralize


def undelivered_reason(url: str, *, is_own: bool, has_answer: bool, refusal: str) -> str:
    """Return why the uploader at `url` does not hold everything; `is_own`: it is this user's own, found by itself."""
    peer = "this user's uploader" if is_own else f"the uploader at {url}"
    if refusal:
        return f"{peer} {refusal}"
    if has_answer:
        return f"{peer} has not confirmed everything"
    return f"{peer} did not answer" if is_own else f"no uploader answered at {url}"


def kept_message(why: str, rows: int, path: str | None) -> str:
    """Return what is said where everything lies in the run's file."""
    what = pluralize(rows, "sample", WAIT) if rows else "the end of the run waits"
    return f"{why}; {what} in {path}; the next collector delivers what lies there"


def lost_message(why: str, rows: int, state_dir: str, also_in: str) -> str:
    """Return what is said where nothing could be written to the run's file; `also_in` is a file of the user's own."""
    if also_in:
        return f"{why}; {pluralize(rows, 'sample', BE)} not delivered, and in no file but {also_in}"
    return f"{pluralize(rows, 'sample', BE)} lost: {why}, and nothing can be written to {state_dir}"
