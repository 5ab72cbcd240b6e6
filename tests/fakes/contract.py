"""What a strict server checks in the bodies of `register` and `finish`: the contract, written down a second time."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import pairwise
from typing import Any

COLUMNS = (
    "timestamp,system_processes,system_utime,system_stime,system_cpu_usage,system_memory_free_mib,"
    "system_memory_used_mib,system_memory_buffers_mib,system_memory_cached_mib,system_memory_active_mib,"
    "system_memory_inactive_mib,system_disk_read_bytes,system_disk_write_bytes,system_disk_space_total_gb,"
    "system_disk_space_used_gb,system_disk_space_free_gb,system_net_recv_bytes,system_net_sent_bytes,system_gpu_usage,"
    "system_gpu_vram_mib,system_gpu_utilized,process_pid,process_children,process_utime,process_stime,"
    "process_cpu_usage,process_memory_mib,process_disk_read_bytes,process_disk_write_bytes,process_gpu_usage,"
    "process_gpu_vram_mib,process_gpu_utilized"
)

_STRINGS = frozenset(
    {
        "project_name",
        "job_name",
        "stage_name",
        "task_name",
        "external_run_id",
        "container_image",
        "command",
        "env",
        "language",
        "orchestrator",
        "executor",
        "team",
        "host_id",
        "host_hostname",
        "host_ip",
        "host_server_allocation",
        "host_cpu_model",
        "host_gpu_model",
        "cloud_vendor_id",
        "cloud_account_id",
        "cloud_region_id",
        "cloud_zone_id",
        "cloud_instance_type",
    }
)
_NUMBERS = frozenset({"host_vcpus", "host_memory_mib", "host_gpu_count", "host_gpu_memory_mib", "host_storage_gb"})
_FINISH = frozenset({"exit_code", "run_status", "finished_at", "data_source", "data_uris", "data_csv"})

Error = dict[str, Any]
Fetch = Callable[[str], bytes | None]


def check_registration(body: Any, *, refuse: set[str], tags: str) -> list[Error]:
    """Return FastAPI's list of errors for a body of `register`, empty when it is right."""
    if not isinstance(body, dict):
        return [_error("dict_type", [], "Input should be a valid dictionary")]
    errors = []
    for name, value in body.items():
        if name in refuse or name not in _STRINGS | _NUMBERS | {"pid", "tags"}:
            errors.append(_error("extra_forbidden", [name], "Extra inputs are not permitted"))
        elif name in _STRINGS and not isinstance(value, str):
            errors.append(_error("string_type", [name], "Input should be a valid string"))
        elif name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            errors.append(_error("float_type", [name], "Input should be a valid number"))
    if "command" in body and not _is_json_words(body["command"]):
        errors.append(_error("value_error", ["command"], "not a JSON array of strings"))
    if body.get("host_server_allocation", "shared") not in {"shared", "dedicated"}:
        errors.append(_error("enum", ["host_server_allocation"], "Input should be 'dedicated' or 'shared'"))
    if "tags" in body and "tags" not in refuse and not _are_tags(body["tags"], tags):
        errors.append(_error("extra_forbidden" if tags == "none" else f"{tags}_type", ["tags"], f"tags: {tags}"))
    return errors


def check_finish(body: Any, *, prefix: str, fetch: Fetch | None, refuse: set[str]) -> list[Error]:
    """Return FastAPI's list of errors for a body of `finish`, empty when it is right."""
    if not isinstance(body, dict):
        return [_error("dict_type", [], "Input should be a valid dictionary")]
    errors = [
        _error("extra_forbidden", [name], "Extra inputs are not permitted")
        for name in body
        if name in refuse or name not in _FINISH
    ]
    code, status = body.get("exit_code"), body.get("run_status")
    if "exit_code" in body and (isinstance(code, bool) or not isinstance(code, int)):
        errors.append(_error("int_type", ["exit_code"], "Input should be a valid integer"))
    if status not in {"finished", "failed"}:
        errors.append(_error("enum", ["run_status"], "Input should be 'finished' or 'failed'"))
    if status == "finished" and code not in {None, 0}:
        errors.append(_error("value_error", ["run_status"], "an exit code other than 0 is failed"))
    if "finished_at" in body and not _is_utc(body["finished_at"]):
        errors.append(_error("datetime_parsing", ["finished_at"], "Input should be a valid datetime in UTC"))
    return errors + _check_data(body, prefix, fetch)


def count_rows(body: dict[str, Any], fetch: Fetch | None) -> int | None:
    """Return the rows of a body that passed `check_finish`, `None` where the objects cannot be read."""
    if "data_csv" in body:
        text: str = body["data_csv"]
        return text.count("\n") - 1
    if fetch is None:
        return None
    return sum(gzip.decompress(fetch(uri) or b"").count(b"\n") - 1 for uri in body["data_uris"])


def check_csv(texts: Iterable[str]) -> str | None:
    """Return what is wrong with CSV texts that follow one another in time, `None` when all is right."""
    times: list[float] = []
    for text in texts:
        header, *rows, last = text.split("\n") if "\n" in text else (text, "missing")
        if header != COLUMNS:
            return "the columns are not those of the contract"
        if last:
            return "the last line does not end"
        for row in rows:
            fields = row.split(",")
            if len(fields) != 32:
                return f"a row has {len(fields)} fields"
            times.append(float(fields[0]))
    if any(later <= earlier for earlier, later in pairwise(times)):
        return "the time stamps do not increase"
    return None


def _check_data(body: dict[str, Any], prefix: str, fetch: Fetch | None) -> list[Error]:
    source, uris, csv = body.get("data_source"), body.get("data_uris"), body.get("data_csv")
    if source == "inline":
        if "data_uris" in body or not isinstance(csv, str):
            return [_error("value_error", ["data_csv"], "inline takes data_csv and nothing else")]
        fault = check_csv([csv])
        return [_error("value_error", ["data_csv"], fault)] if fault else []
    if source != "s3":
        return [_error("enum", ["data_source"], "Input should be 's3' or 'inline'")]
    if "data_csv" in body or not isinstance(uris, list) or not uris:
        return [_error("value_error", ["data_uris"], "s3 takes data_uris and nothing else")]
    if uris != [f"{prefix}/{number:04d}.csv.gz" for number in range(1, len(uris) + 1)]:
        return [_error("value_error", ["data_uris"], "not the keys of the contract, in order and without gaps")]
    if fetch is None:
        return []
    try:
        fault = check_csv(gzip.decompress(fetch(uri) or b"").decode() for uri in uris)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        fault = f"an object cannot be read: {error}"
    return [_error("value_error", ["data_uris"], fault)] if fault else []


def _error(kind: str, location: list[str], message: str) -> Error:
    return {"type": kind, "loc": ["body", *location], "msg": message}


def _is_json_words(text: Any) -> bool:
    try:
        words = json.loads(text)
    except (TypeError, ValueError):
        return False
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def _are_tags(value: Any, wanted: str) -> bool:
    if isinstance(value, dict):
        return wanted in {"object", "any"} and all(isinstance(text, str) for text in value.values())
    if isinstance(value, list):
        return wanted in {"list", "any"} and all(isinstance(text, str) and "=" in text for text in value)
    return False


def _is_utc(text: Any) -> bool:
    if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", text):
        return False
    return datetime.fromisoformat(text).tzinfo is not None
