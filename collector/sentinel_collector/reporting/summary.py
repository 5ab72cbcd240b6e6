"""Where a run's samples are: lines on stderr; and the run's summary as a JSON file."""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sentinel_collector.console import pluralize
from sentinel_protocol.wire.messages import Finished
from sentinel_protocol.wire.run_statistics import RunStatistics

SUMMARY_START = b'{\n  "run_id": '
"""Every `summary_json` begins like this."""
_REFUSED_TOKEN = re.compile(r"(?:(?:register|refresh|finish)|(?P<url>https?://\S+)): HTTP 40[13]\b")


def delivery_lines(
    figures: dict[str, Any], *, is_remote: bool = False, environ: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Return where the samples are, as text. With `is_remote` the uploader may be on another machine."""
    samples = pluralize(figures["rows"], "sample")
    if figures["inline"]:
        return [f"{samples} sent to the API (inline) as run {figures['run_id']}"]
    if figures["location"]:
        return [f"{samples} delivered to {figures['location']}"]
    if not figures["durable"] or figures["delivered"] or figures["parked"]:
        return []
    show = _show_command(figures, is_remote)
    refusing = refused_token(figures["delivery_error"])
    if refusing is not None:
        return [f"{_refused_token_line(refusing, environ)}; {show} shows the run"]
    trouble = [f"not delivered yet: {figures['delivery_error']}"] if figures["trouble"] else []
    return [*trouble, f"the uploader has all samples and delivers them; {show} shows the progress"]


def look_line(figures: dict[str, Any], *, is_remote: bool) -> str | None:
    """Return where to look at the run, `None` where the viewer is missing or does not find the run."""
    if is_remote or not figures["location"].startswith("/"):
        return None
    from importlib.util import find_spec

    if find_spec("sentinel_viewer") is None:
        return None
    return "`sentinel-stream report latest --open` shows it"


def parked_line(figures: dict[str, Any], *, is_remote: bool = False) -> str | None:
    """Return the line for a run that the uploader has set aside, `None` for another run."""
    if not figures["parked"]:
        return None
    show = _show_command(figures, is_remote)
    return f"the uploader has set the run aside until an operator checks it ({show}): {figures['delivery_error']}"


def _show_command(figures: dict[str, Any], is_remote: bool) -> str:
    name = figures["run_id"] or figures["run_key"]
    if not name.replace("-", "").isalnum() or not name.isascii():
        import shlex

        name = shlex.quote(name)
    return f"`sentinel-uploader show {name}`" + (" on the uploader's machine" if is_remote else "")


def summary_figures(
    *,
    run_key: str,
    run_id: str,
    status: str,
    exit_code: int | None,
    statistics: RunStatistics,
    peak_memory_mib: float | None,
    accounting: str,
    is_acknowledged: bool,
    undelivered_rows: int,
    finished: Finished | None,
    delivery_error: str,
    is_parked: bool,
) -> dict[str, Any]:
    """Return the run's figures; `statistics` are the same as in `run.json` (`RunStatistics.summary`)."""
    error = "" if finished is not None else delivery_error
    return {
        "run_id": run_id,
        "run_key": run_key,
        "status": status,
        "exit_code": exit_code,
        "rows": statistics.rows,
        "statistics": statistics.summary(),
        "peak_memory_mib": peak_memory_mib,
        "accounting": accounting,
        "durable": is_acknowledged,
        "delivered": finished is not None,
        "parked": is_parked and finished is None,
        "delivery_error": error,
        # The former name, for programs that read it.
        "trouble": error,
        "undelivered_rows": undelivered_rows,
        "location": "" if finished is None else _readable(finished.object_prefix),
        "inline": _is_inline(finished, statistics.rows),
        "objects": [] if finished is None else [_readable(uri) for uri in finished.objects],
        "response": {} if finished is None else finished.response,
    }


def _is_inline(finished: Finished | None, rows: int) -> bool:
    """Whether the rows were sent with the run's end, not as objects."""
    return finished is not None and rows > 0 and not finished.objects_count and bool(finished.object_prefix)


def summary_json(figures: dict[str, Any]) -> bytes:
    """Return the figures as JSON text."""
    return (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def refused_token(trouble: str) -> str | None:
    """Return the address of the API that refuses the token, empty if unknown; `None` for other trouble."""
    match = _REFUSED_TOKEN.match(trouble)
    return None if match is None else match["url"] or ""


def _refused_token_line(refusing: str, environ: Mapping[str, str]) -> str:
    api = refusing or environ.get("SENTINEL_API_URL") or "the Sentinel API"
    file = environ.get("SENTINEL_API_TOKEN_FILE")
    token = (
        f"in {file}" if file else "in SENTINEL_API_TOKEN" if environ.get("SENTINEL_API_TOKEN") else "of the uploader"
    )
    return f"{api} refuses the token {token}. The samples are kept; the next run with a correct token sends them"


def _readable(uri: str) -> str:
    """Return a `file://` URI as a path, others unchanged."""
    if not uri.startswith("file://"):
        return uri
    path = uri.removeprefix("file://")
    if "%" not in path:
        return path
    from urllib.parse import unquote

    return unquote(path)
