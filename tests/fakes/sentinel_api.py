"""A strict Sentinel API over real HTTP: takes exactly what the contract describes, and behaves either way where that
names two ways.
"""

import gzip
import hmac
import itertools
import json
import re
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

from fakes.contract import check_finish, check_registration, count_rows
from fakes.faults import Recorded
from fakes.keyring import Issued, Keyring
from fakes.strict_http_server import Reply, StrictHttpServer

EXPIRY_FORMATS: Mapping[str, Callable[[float], str]] = {
    "z": lambda at: datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "z-fraction": lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    "offset": lambda at: datetime.fromtimestamp(int(at), UTC).isoformat(),
    "offset-fraction": lambda at: datetime.fromtimestamp(at, timezone(timedelta(hours=2))).isoformat(),
}


@dataclass
class Run:
    """A run as the server knows it."""

    run_id: str
    registration: dict[str, Any]
    prefix: str
    credentials: list[Issued] = field(default_factory=list)
    finish: dict[str, Any] | None = None
    """The accepted body of `finish`."""
    response: dict[str, Any] | None = None


@dataclass
class Behaviour:
    """Where servers differ; may be changed while the server runs.

    `refuse`: fields that `register` and `finish` answer with 422 (`extra_forbidden`). `tags`: `object`, `list`,
    `any` or `none`. `gzip`: `any`, `required` (for inline) or `refused` (with `gzip_refusal`). `second_finish`: the
    status of a repetition. `expiry_key`: `expires_at`, `expiration` or empty; `expiry_format`: see
    `EXPIRY_FORMATS`. `region`: what the credentials name, `None` leaves it out.
    """

    refuse: set[str] = field(default_factory=set)
    tags: str = "object"
    gzip: str = "any"
    gzip_refusal: int = 415
    second_finish: int = 409
    lifetime_s: float = 3600.0
    expiry_key: str = "expires_at"
    expiry_format: str = "z"
    region: str | None = "us-east-1"


class SentinelServer(StrictHttpServer):
    """The API at `url` (with `path_prefix`), for the bearer tokens in `tokens` (a set that tests may change).

    `keyring` holds what was issued: give it to the storage stand-in. `upload_root` (`s3://BUCKET[/PREFIX]`) is where
    runs get their prefix, `{upload_root}/{run_id}`. `fetch` reads an object by its address, so that `finish` can count
    rows and check headers (`None`: not looked at). `runs` maps run ids to `Run`s; `forget(run_id)` makes one unknown.
    The calls for `faults` are `register`, `refresh` and `finish`.
    """

    def __init__(
        self,
        *,
        token: str = "test-token",
        keyring: Keyring | None = None,
        upload_root: str = "s3://bucket/runs",
        fetch: Callable[[str], bytes | None] | None = None,
        path_prefix: str = "",
        behaviour: Behaviour | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(port=port, tls=tls, now=now)
        self.tokens = {token}
        self.keyring = keyring or Keyring()
        self.upload_root = upload_root
        self.fetch = fetch
        self.behaviour = behaviour or Behaviour()
        self.runs: dict[str, Run] = {}
        self.url += path_prefix
        self._path_prefix = path_prefix
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def forget(self, run_id: str) -> None:
        """Answer 404 for this run from now on."""
        with self._lock:
            del self.runs[run_id]

    def read(self, request: Recorded) -> None:
        match = re.fullmatch(
            re.escape(self._path_prefix) + r"/runs(?:/(?P<run>[^/]+)/(?P<action>refresh-credentials|finish))?",
            request.path,
        )
        if match is None:
            return
        request.call = {None: "register", "finish": "finish"}.get(match["action"], "refresh")
        request.run_id = unquote(match["run"]) if match["run"] else None
        try:
            body = request.body
            if request.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            request.decoded = json.loads(body) if body else None
        except (ValueError, OSError, EOFError, zlib.error):
            request.decoded = None

    def perform(self, request: Recorded) -> Reply:
        refusal = self._check_head(request)
        if refusal is not None:
            return refusal
        with self._lock:
            if request.call == "register":
                return self._register(request)
            run = self.runs.get(request.run_id or "")
            if run is None:
                return _json(404, {"detail": "Run not found"})
            return self._refresh(request, run) if request.call == "refresh" else self._finish(request, run)

    def _check_head(self, request: Recorded) -> Reply | None:
        if request.call == "unknown":
            return _json(404, {"detail": "Not Found"})
        if request.method != "POST":
            return _json(405, {"detail": "Method Not Allowed"})
        given = request.headers.get("authorization", "")
        if not any(hmac.compare_digest(given.encode(), f"Bearer {token}".encode()) for token in self.tokens):
            return _json(401, {"detail": "Invalid token"})
        if request.headers.get("content-type") != "application/json":
            return _json(415, {"detail": "Content-Type is not application/json"})
        if request.headers.get("accept") != "application/json":
            return _json(406, {"detail": "Accept is not application/json"})
        if request.call != "refresh" and "content-encoding" not in request.headers and request.decoded is None:
            return _json(422, {"detail": [{"type": "json_invalid", "loc": ["body", 0], "msg": "JSON decode error"}]})
        return None

    def _register(self, request: Recorded) -> Reply:
        errors = check_registration(request.decoded, refuse=self.behaviour.refuse, tags=self.behaviour.tags)
        if errors:
            return _json(422, {"detail": errors})
        run_id = f"run-{next(self._numbers)}"
        run = Run(run_id, request.decoded, f"{self.upload_root}/{run_id}")
        self.runs[run_id] = run
        request.run_id = run_id
        request.took_effect = True
        response = {
            "run_id": run_id,
            "upload_uri_prefix": run.prefix,
            "upload_credentials": self._issue(run),
            "something_new": {"unknown": "keys are ignored"},
        }
        return _json(201, response)

    def _refresh(self, request: Recorded, run: Run) -> Reply:
        if request.body:
            return _json(422, {"detail": [{"type": "extra_forbidden", "loc": ["body"], "msg": "no body is taken"}]})
        request.took_effect = True
        return _json(200, {"upload_credentials": self._issue(run)})

    def _finish(self, request: Recorded, run: Run) -> Reply:
        refusal = self._check_encoding(request)
        if refusal is not None:
            return refusal
        if run.finish is not None:
            if self.behaviour.second_finish < 300:
                return _json(self.behaviour.second_finish, run.response)
            return _json(self.behaviour.second_finish, {"detail": "Run is already finished"})
        body = request.decoded
        errors = check_finish(body, prefix=run.prefix, fetch=self.fetch, refuse=self.behaviour.refuse)
        if errors:
            return _json(422, {"detail": errors})
        run.finish = body
        run.response = {
            "run": {"run_id": run.run_id, "run_status": body["run_status"], "finished_at": body.get("finished_at")},
            "processing": {
                "status": "done",
                "rows": count_rows(body, self.fetch),
                "files": len(body.get("data_uris", [])),
                "duration_ms": 1,
                "error": None,
            },
        }
        request.took_effect = True
        return _json(200, run.response)

    def _check_encoding(self, request: Recorded) -> Reply | None:
        is_gzip = request.headers.get("content-encoding") == "gzip"
        if is_gzip and self.behaviour.gzip == "refused":
            return _json(self.behaviour.gzip_refusal, {"detail": "There was an error parsing the body"})
        if is_gzip and request.decoded is None:
            return _json(400, {"detail": "There was an error parsing the body"})
        is_inline = isinstance(request.decoded, dict) and "data_csv" in request.decoded
        if is_inline and not is_gzip and self.behaviour.gzip == "required":
            return _json(415, {"detail": "inline data is taken gzipped only"})
        return None

    def _issue(self, run: Run) -> dict[str, Any]:
        behaviour = self.behaviour
        issued = self.keyring.issue(run.prefix, self.now() + behaviour.lifetime_s)
        run.credentials.append(issued)
        answer: dict[str, Any] = {
            "access_key": issued.access_key,
            "secret_key": issued.secret_key,
            "session_token": issued.session_token,
        }
        if behaviour.region is not None:
            answer["region"] = behaviour.region
        if behaviour.expiry_key:
            answer[behaviour.expiry_key] = EXPIRY_FORMATS[behaviour.expiry_format](issued.expires_at)
        return answer


def _json(status: int, value: Any) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
