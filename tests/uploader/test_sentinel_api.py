import gzip
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes.contract import COLUMNS
from fakes.faults import Recorded
from fakes.http_proxy import HttpProxy
from fakes.offset_clock import OffsetClock
from fakes.sentinel_api import Behaviour, SentinelServer
from fakes.tls import make_authority, server_context

from sentinel_protocol.common.api_url import api_url_error, redact_url
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.sentinel.backend import SentinelBackend
from sentinel_uploader.backends.sentinel.payload import command_text, registration, tags_object
from sentinel_uploader.backends.sentinel.responses import processing_error
from sentinel_uploader.backends.sentinel.token import TokenError, token_source
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.types import FinishRequest, FinishResult, RunDescription
from sentinel_uploader.sentinel_api import (
    DataSource,
    RunStatus,
    SentinelAPIError,
    finish_run,
    refresh_credentials,
    register_run,
)

TOKEN = "planted-token"
CSV = f"{COLUMNS}\n1.5{',' * 31}\n2.5{',' * 31}\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SentinelServer]:
    with SentinelServer(token=TOKEN, path_prefix="/some/prefix") as running:
        monkeypatch.setenv("SENTINEL_API_URL", f"{running.url}/")
        yield running


@pytest.fixture
def clock() -> OffsetClock:
    return OffsetClock()


@pytest.fixture
def api(server: SentinelServer, clock: OffsetClock) -> Iterator[SentinelBackend]:
    with closing(SentinelBackend(lambda: TOKEN, server.url, clock, {})) as made:
        yield made


def described(**metadata: Any) -> RunDescription:
    return RunDescription(
        uid="uid", run_key="key", created_at=0.0, interval_s=1.0, metadata=metadata, host={"host_vcpus": 2}, cloud={}
    )


def ending(
    run_id: str, *, csv: str | None = CSV, uris: list[str] | None = None, exit_code: int | None = 0
) -> FinishRequest:
    return FinishRequest(
        run=described(),
        run_id=run_id,
        exit_code=exit_code,
        status="finished" if exit_code in {0, None} else "failed",
        finished_at=1767323045.25,
        data_uris=uris,
        data_csv=None if csv is None else csv.encode(),
        rows=2,
        summary={"rows": 2},
    )


def bodies(server: SentinelServer, call: str) -> list[Any]:
    return [request.decoded for request in server.requests.of(call)]


def statuses(server: SentinelServer, call: str) -> list[int | None]:
    return [request.status for request in server.requests.of(call)]


def test_a_run_from_register_to_finish(server: SentinelServer) -> None:
    answer = register_run(
        TOKEN,
        {"job_name": "j\u00f6b", "command": ["python", "a b.py"], "tags": {"a": "1"}, "team": None},
        host_info={"host_vcpus": 4, "host_memory_mib": 1024.5, "host_gpu_model": None},
        cloud_info={"cloud_vendor_id": "aws"},
    )
    run = server.runs[answer["run_id"]]
    assert run.registration == {
        "job_name": "j\u00f6b",
        "command": '["python", "a b.py"]',
        "tags": {"a": "1"},
        "host_vcpus": 4,
        "host_memory_mib": 1024.5,
        "cloud_vendor_id": "aws",
    }
    assert answer["upload_uri_prefix"] == run.prefix
    assert "something_new" in answer
    refreshed = refresh_credentials(TOKEN, run.run_id)
    assert refreshed["upload_credentials"]["access_key"] == run.credentials[1].access_key
    uris = [f"{run.prefix}/0001.csv.gz", f"{run.prefix}/0002.csv.gz"]
    response = finish_run(TOKEN, run.run_id, exit_code=3, run_status=RunStatus.failed, data_uris=uris)
    assert run.finish == {"exit_code": 3, "run_status": "failed", "data_source": "s3", "data_uris": uris}
    assert response["run"]["run_status"] == "failed"
    assert server.requests.of("refresh")[0].body == b""


@pytest.mark.parametrize("csv", [CSV, CSV.encode(), f"{COLUMNS}\n"])
def test_inline_data_is_gzipped(server: SentinelServer, csv: str | bytes) -> None:
    server.behaviour.gzip = "required"
    run_id = register_run(TOKEN)["run_id"]
    finish_run(TOKEN, run_id, exit_code=None, data_source=DataSource.inline, data_csv=csv)
    text = csv if isinstance(csv, str) else csv.decode()
    assert server.runs[run_id].finish == {"run_status": "finished", "data_source": "inline", "data_csv": text}
    (request,) = server.requests.of("finish")
    assert request.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(request.body))["data_csv"] == text


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"data_uris": []},
        {"data_uris": "s3://b/0001.csv.gz"},
        {"data_uris": [""]},
        {"data_csv": CSV},
        {"data_uris": ["s3://b/k"], "data_csv": CSV},
        {"data_source": DataSource.inline},
        {"data_source": DataSource.inline, "data_csv": ""},
        {"data_source": DataSource.inline, "data_uris": ["s3://b/k"]},
        {"data_source": DataSource.inline, "data_csv": CSV, "data_uris": ["s3://b/k"]},
        {"data_source": "elsewhere", "data_csv": CSV},
        {"run_status": "crashed", "data_uris": ["s3://b/k"]},
    ],
)
def test_finish_with_the_wrong_data_is_refused_before_anything_is_sent(
    server: SentinelServer, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"data|RunStatus|DataSource"):
        finish_run(TOKEN, "run-1", **arguments)
    assert server.requests.of() == []


def test_the_error_can_be_made_from_status_and_body() -> None:
    error = SentinelAPIError(500, "text")
    assert (error.status_code, error.body, str(error)) == (500, "text", "HTTP 500: text")
    assert isinstance(error, DeliveryError)
    assert (error.retry_action, error.remedy, error.retry_after_s) == (RetryAction.RETRY, RetryAction.RETRY, None)
    assert len(SentinelAPIError(500, "x" * 100_000).body) == 4096


@pytest.mark.parametrize("token", ["planted\ntoken", "planted\r\nX: 1", "", "planted token"])
def test_a_token_that_cannot_be_sent_is_refused(server: SentinelServer, token: str) -> None:
    with pytest.raises(TokenError) as caught:
        register_run(token)
    assert "planted" not in str(caught.value)
    assert server.requests.of() == []


@pytest.mark.parametrize("run_id", ["a/../../runs", "../x", "a?b#c", "a b%2F", "\u00e9/\u20ac", "a\r\nX: 1"])
def test_a_hostile_run_id_stays_one_part_of_the_path(server: SentinelServer, run_id: str) -> None:
    with pytest.raises(SentinelAPIError, match="refresh: HTTP 404") as caught:
        refresh_credentials(TOKEN, run_id)
    assert caught.value.retry_action is RetryAction.FAIL
    (request,) = server.requests.of()
    assert (request.call, request.run_id) == ("refresh", run_id)


@pytest.mark.parametrize("run_id", ["", ".", ".."])
def test_a_run_id_that_cannot_stand_in_a_path_is_refused(server: SentinelServer, run_id: str) -> None:
    with pytest.raises(SentinelAPIError, match="cannot stand in an address"):
        refresh_credentials(TOKEN, run_id)
    assert server.requests.of() == []


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://user:planted@x", "nonsense", "https://", "https://x/?planted", "http://a b"]
)
def test_an_address_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(UsageError, match="SENTINEL_API_URL") as caught:
        SentinelBackend(lambda: TOKEN, url, SystemClock(), {})
    assert "planted" not in str(caught.value)
    assert repr(redact_url(url)) in str(caught.value)
    # The collector says the same before the job, and knows no HTTP library.
    assert api_url_error(url)


@pytest.mark.parametrize("url", ["https://h", "HTTP://h:80/", "https://[::1]:8080/a/b@c", "http://127.0.0.1:1/prefix/"])
def test_an_address_that_can_be_used_has_no_fault(url: str) -> None:
    assert api_url_error(url) == ""
    SentinelBackend(lambda: TOKEN, url, SystemClock(), {}).close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("foo", "foo"),
        ("https://user:planted@x/p?planted#planted", "https://…@x/p?…"),
        ("https://h/#planted", "https://h/#…"),
        ("user:planted@x", "…@x"),
    ],
)
def test_an_address_is_shown_without_what_may_be_a_secret(url: str, shown: str) -> None:
    assert redact_url(url) == shown


CALLS: Mapping[str, Callable[[], Any]] = {
    "register": lambda: register_run(TOKEN, {"job_name": "j"}),
    "refresh": lambda: refresh_credentials(TOKEN, "run-1"),
    "finish": lambda: finish_run(TOKEN, "run-1", data_uris=["s3://b/0001.csv.gz"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "action"),
    [
        (408, RetryAction.RETRY), (425, RetryAction.RETRY), (429, RetryAction.RETRY), (500, RetryAction.RETRY),
        (503, RetryAction.RETRY), (599, RetryAction.RETRY), (401, RetryAction.RETRY_SLOW),
        (403, RetryAction.RETRY_SLOW), (302, RetryAction.RETRY_SLOW), (308, RetryAction.RETRY_SLOW),
        (400, RetryAction.FAIL), (404, RetryAction.FAIL), (409, RetryAction.FAIL),
        (410, RetryAction.FAIL), (422, RetryAction.FAIL),
    ],
)  # fmt: skip
def test_an_error_answer_is_classified_after_one_attempt(
    server: SentinelServer, call: str, status: int, action: RetryAction
) -> None:
    text = f"no\x1b[31m luck\n with {TOKEN} " + "x" * 500
    fault = server.faults.add(call, status=status, body=text.encode(), headers={"Retry-After": "7", "Location": "/x"})
    with pytest.raises(SentinelAPIError, match=f"^{call}: HTTP {status}: ") as caught:
        CALLS[call]()
    assert fault.fired == 1
    error = caught.value
    assert (error.status_code, error.retry_action, error.retry_after_s) == (status, action, 7.0)
    assert TOKEN not in str(error) + error.body
    assert "\x1b" not in str(error)
    assert len(str(error)) < 260
    assert len(server.requests.of()) == 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", [b"{", b"<html>", b"\xff", b"[" * 100_000, b'"text"', b"[1]", b"null"])
def test_a_success_that_is_not_a_json_object_is_an_error(server: SentinelServer, call: str, body: bytes) -> None:
    fault = server.faults.add(call, status=200, body=body)
    with pytest.raises(SentinelAPIError, match=f"{call}: HTTP 200: the answer .*not (JSON|a JSON object)") as caught:
        CALLS[call]()
    assert (fault.fired, caught.value.retry_action, caught.value.body) == (1, RetryAction.RETRY, "")


@pytest.mark.parametrize("call", CALLS)
def test_a_huge_answer_is_not_held(server: SentinelServer, call: str) -> None:
    fault = server.faults.add(call, status=200, huge_body_bytes=200 << 20)
    with pytest.raises(SentinelAPIError, match=f"{call}: HTTP 200 with an answer of more than") as caught:
        CALLS[call]()
    assert (fault.fired, caught.value.retry_action) == (1, RetryAction.RETRY)


def test_an_empty_answer_to_finish_is_an_empty_object(server: SentinelServer) -> None:
    server.faults.add("finish", status=204)
    assert CALLS["finish"]() == {}


GOOD: dict[str, Any] = {
    "run_id": "run-1",
    "upload_uri_prefix": "s3://b/p",
    "upload_credentials": {"access_key": "A", "secret_key": "planted-secret", "session_token": "planted-session"},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run_id",), None), (("run_id",), 7), (("run_id",), ""), (("upload_uri_prefix",), None),
        (("upload_credentials",), None), (("upload_credentials",), []), (("upload_credentials", "access_key"), None),
        (("upload_credentials", "secret_key"), ""), (("upload_credentials", "session_token"), None),
    ],
)  # fmt: skip
def test_an_answer_without_a_required_key_names_the_key(
    server: SentinelServer, path: tuple[str, ...], value: Any
) -> None:
    answer = json.loads(json.dumps(GOOD))
    holder = answer
    for key in path[:-1]:
        holder = holder[key]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    server.faults.add("*", status=200, body=json.dumps(answer).encode())
    calls = ["register", "refresh"] if path[0] == "upload_credentials" else ["register"]
    for call in calls:
        with pytest.raises(SentinelAPIError, match=f"{call}: .*'{'.'.join(path)}'") as caught:
            CALLS[call]()
        assert caught.value.retry_action is RetryAction.RETRY_SLOW
        assert "planted" not in str(caught.value) + caught.value.body


@pytest.mark.parametrize("fault", [{"drop_before": True}, {"drop_after_effect": True}])
def test_a_lost_answer_is_to_be_retried(server: SentinelServer, fault: dict[str, bool]) -> None:
    lost = server.faults.add("register", times=1, **fault)
    with pytest.raises(SentinelAPIError, match=r"^register: ") as caught:
        CALLS["register"]()
    assert (lost.fired, caught.value.retry_action, caught.value.status_code) == (1, RetryAction.RETRY, None)
    assert len(server.runs) == (1 if "drop_after_effect" in fault else 0)
    CALLS["register"]()


def test_a_redirect_does_not_carry_the_token_elsewhere(server: SentinelServer) -> None:
    with SentinelServer(token=TOKEN) as other:
        server.faults.add("register", status=307, headers={"Location": f"{other.url}/runs"})
        with pytest.raises(SentinelAPIError, match=f"redirects to {other.url}/runs, which is not followed"):
            CALLS["register"]()
        assert other.requests.of() == []


def test_unknown_fields_are_left_out_with_a_warning_and_remembered_for_an_hour(
    server: SentinelServer, api: SentinelBackend, clock: OffsetClock, caplog: pytest.LogCaptureFixture
) -> None:
    server.behaviour.refuse = {"pid", "team"}
    with caplog.at_level(logging.WARNING):
        api.register(described(pid=1, team="t", job_name="j"))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert {"field=pid", "field=team"} <= set(caplog.text.split())
    assert bodies(server, "register")[1:] == [{"job_name": "j", "host_vcpus": 2}]
    api.register(described(pid=2, job_name="k"))
    clock.monotonic_s += 3599
    api.register(described(pid=3))
    assert statuses(server, "register") == [422, 201, 201, 201]
    clock.monotonic_s += 2
    api.register(described(pid=4))
    assert statuses(server, "register")[4:] == [422, 201]


def test_pid_goes_out_when_it_is_given(server: SentinelServer, api: SentinelBackend) -> None:
    api.register(described(pid=17))
    api.register(described())
    assert [body.get("pid") for body in bodies(server, "register")] == [17, None]


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ("object", [{"k": "v", "n": "1"}]),
        ("list", [{"k": "v", "n": "1"}, ["k=v", "n=1"]]),
        ("none", [{"k": "v", "n": "1"}, ["k=v", "n=1"], None]),
    ],
)
def test_tags_become_a_list_and_then_go(
    server: SentinelServer, api: SentinelBackend, wanted: str, sent: list[Any]
) -> None:
    server.behaviour.tags = wanted
    api.register(described(tags={"k": "v", "n": 1}))
    assert [body.get("tags") for body in bodies(server, "register")] == sent
    api.register(described(tags={"k": "v", "n": 1}))
    assert [body.get("tags") for body in bodies(server, "register")] == [*sent, sent[-1]]


def test_a_value_that_is_refused_does_not_cost_another_run_its_field(
    server: SentinelServer, api: SentinelBackend
) -> None:
    def is_bad(request: Recorded) -> bool:
        return bool(request.decoded.get("job_name") == "bad")

    detail = [{"type": "string_pattern_mismatch", "loc": ["body", "job_name"], "msg": "no"}]
    fault = server.faults.add("register", status=422, body=json.dumps({"detail": detail}).encode(), where=is_bad)
    api.register(described(job_name="bad"))
    api.register(described(job_name="bad"))
    api.register(described(job_name="good"))
    assert fault.fired == 1
    assert [body.get("job_name") for body in bodies(server, "register")] == ["bad", None, None, "good"]


@pytest.mark.parametrize(
    "body", [b"", b"text", b"[]", b'{"detail": "no"}', b'{"detail": [1, {"loc": 3}, {"loc": ["body", "other"]}]}']
)
def test_a_422_that_names_nothing_we_sent_is_final(server: SentinelServer, body: bytes) -> None:
    fault = server.faults.add("register", status=422, body=body)
    with pytest.raises(SentinelAPIError, match="HTTP 422") as caught:
        CALLS["register"]()
    assert (fault.fired, caught.value.retry_action) == (1, RetryAction.FAIL)


def test_a_server_that_refuses_one_field_after_another_is_not_asked_for_ever(
    server: SentinelServer, api: SentinelBackend
) -> None:
    fields = ["job_name", "team", "env", "language", "executor", "stage_name", "task_name", "project_name"]

    def refuse_first(name: str) -> None:
        detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "no"}]
        server.faults.add(
            "register",
            status=422,
            body=json.dumps({"detail": detail}).encode(),
            where=lambda seen: name in seen.decoded,
        )

    for name in fields:
        refuse_first(name)
    with pytest.raises(SentinelAPIError):
        api.register(described(**dict.fromkeys(fields, "x")))
    assert len(server.requests.of()) == 6


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_server_that_cannot_unzip_gets_the_body_plain_and_is_remembered(
    server: SentinelServer, api: SentinelBackend, status: int
) -> None:
    server.behaviour.gzip, server.behaviour.gzip_refusal = "refused", status
    for number in (1, 2):
        run_id = api.register(described()).run_id
        assert api.finish(ending(run_id)).complaint is None
        assert server.runs[run_id].finish is not None
        assert len(server.requests.of("finish")) == number + 1
    assert [request.headers.get("content-encoding") for request in server.requests.of("finish")] == ["gzip", None, None]


def test_a_wrong_header_is_refused_gzipped_and_plain_and_then_final(
    server: SentinelServer, api: SentinelBackend
) -> None:
    run_id = api.register(described()).run_id
    with pytest.raises(SentinelAPIError, match=r"HTTP 422: .*columns") as caught:
        api.finish(ending(run_id, csv="time,cpu\n1,2\n"))
    assert caught.value.retry_action is RetryAction.FAIL
    assert statuses(server, "finish") == [422, 422]
    # That it was refused plain too says nothing about gzip.
    api.finish(ending(run_id))
    assert [request.headers.get("content-encoding") for request in server.requests.of("finish")] == [
        "gzip",
        None,
        "gzip",
    ]


def test_a_server_that_does_not_know_finished_at_does_without(server: SentinelServer, api: SentinelBackend) -> None:
    server.behaviour.refuse = {"finished_at"}
    for _ in range(2):
        run = server.runs[api.register(described()).run_id]
        api.finish(ending(run.run_id, csv=None, uris=[f"{run.prefix}/0001.csv.gz"]))
    assert statuses(server, "finish") == [422, 200, 200]


def test_the_port_registers_refreshes_and_finishes(server: SentinelServer, api: SentinelBackend) -> None:
    server.behaviour = Behaviour(lifetime_s=900, expiry_key="expiration", expiry_format="offset-fraction")
    before = time.time()
    registration = api.register(described(command="python 'a b.py'"))
    credentials = registration.credentials
    assert credentials is not None
    assert credentials.expires_at is not None
    assert before + 900 - 0.001 <= credentials.expires_at <= time.time() + 900
    assert credentials.region == "us-east-1"
    assert bodies(server, "register")[0]["command"] == '["python", "a b.py"]'
    assert api.refresh(registration.run_id).access_key != credentials.access_key
    api.finish(ending(registration.run_id, exit_code=None))
    accepted = server.runs[registration.run_id].finish
    assert accepted is not None
    assert (accepted["finished_at"], accepted["run_status"]) == ("2026-01-02T03:04:05.250Z", "finished")
    assert "exit_code" not in accepted
    assert api.backoff_key == server.url
    assert api.inline_limit_bytes == 5 * 2**20


def test_finish_after_a_lost_answer_is_success(server: SentinelServer, api: SentinelBackend) -> None:
    run_id = api.register(described()).run_id
    lost = server.faults.add("finish", drop_after_effect=True, times=1)
    with pytest.raises(SentinelAPIError):
        api.finish(ending(run_id))
    assert lost.fired == 1
    assert api.finish(ending(run_id)) == FinishResult({})
    assert statuses(server, "finish") == [None, 409]
    with pytest.raises(SentinelAPIError, match="409"):
        finish_run(TOKEN, run_id, data_source=DataSource.inline, data_csv=CSV)


def test_a_finish_that_may_be_repeated_gives_the_first_answer(server: SentinelServer, api: SentinelBackend) -> None:
    server.behaviour.second_finish = 200
    run_id = api.register(described()).run_id
    assert api.finish(ending(run_id)) == api.finish(ending(run_id))


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_credentials_expire_by_our_own_clock_however_wrong_that_is(
    server: SentinelServer, api: SentinelBackend, clock: OffsetClock, ahead_s: float
) -> None:
    clock.wall_s = -ahead_s
    credentials = api.register(described()).credentials
    assert credentials is not None
    assert credentials.expires_at is not None
    assert 3590 < credentials.expires_at - clock.now() < 3605


@pytest.mark.parametrize("expiry_format", ["z", "z-fraction", "offset", "offset-fraction"])
@pytest.mark.parametrize("expiry_key", ["expires_at", "expiration", ""])
def test_credentials_are_read_in_every_form(
    server: SentinelServer, api: SentinelBackend, expiry_key: str, expiry_format: str
) -> None:
    server.behaviour = Behaviour(expiry_key=expiry_key, expiry_format=expiry_format, region=None)
    credentials = api.register(described()).credentials
    assert credentials is not None
    assert credentials.region is None
    assert (credentials.expires_at is None) == (expiry_key == "")


def test_a_rotated_token_file_is_picked_up(server: SentinelServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old-token\n")
    source = token_source({"SENTINEL_API_TOKEN_FILE": str(path)})
    assert source is not None
    with closing(SentinelBackend(source, server.url, SystemClock(), {})) as api:
        with pytest.raises(SentinelAPIError, match="401") as caught:
            api.register(described())
        assert caught.value.retry_action is RetryAction.RETRY_SLOW
        path.write_text(f"{TOKEN}\n")
        api.register(described())
    assert statuses(server, "register") == [401, 201]


def test_over_tls_through_a_proxy(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    context = server_context(authority, "DNS:api.example")
    with (
        SentinelServer(token=TOKEN, tls=context) as server,
        HttpProxy(routes={"api.example:443": server.port}) as proxy,
        closing(
            SentinelBackend(
                lambda: TOKEN,
                "https://api.example",
                SystemClock(),
                {"HTTPS_PROXY": proxy.address, "SSL_CERT_FILE": str(authority.certificate)},
            )
        ) as api,
    ):
        run_id = api.register(described()).run_id
        api.finish(ending(run_id))
        assert len(proxy.seen) == 1
        assert server.runs[run_id].finish is not None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "train.py"], '["python", "train.py"]'),
        ("python train.py", '["python", "train.py"]'),
        ('echo \'a b\' "c\\"d"', '["echo", "a b", "c\\"d"]'),
        ("echo 'open", '["echo \'open"]'),
        (["name", "\udcff"], '["name", "?"]'),
        (["\u00e9"], '["\\u00e9"]'),
    ],
)
def test_command_is_a_string_that_holds_a_json_array(command: str | list[str], expected: str) -> None:
    assert command_text(command) == expected


def test_tags_are_an_object_of_strings() -> None:
    assert tags_object({"a": 1, "b": None, "c": "x=y"}) == {"a": "1", "c": "x=y"}
    assert tags_object(["a=1", "c=x=y", "bare"]) == {"a": "1", "c": "x=y", "bare": ""}


def test_registration_is_flat_and_without_nulls() -> None:
    assert registration(None, None, None) == {}
    assert registration({"a": None, "job_name": "\udcff"}, {"host_vcpus": 0}, {"cloud_vendor_id": ""}) == {
        "job_name": "?",
        "host_vcpus": 0,
        "cloud_vendor_id": "",
    }


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        ({}, None),
        ({"processing": None}, None),
        ({"processing": {"rows": 5, "error": None}}, None),
        ({"processing": {"rows": None}}, None),
        ({"processing": {"rows": 4}}, "the server counted 4 rows, 5 were sent"),
        ({"processing": {"rows": 5, "error": "bad\ncolumn"}}, "the server could not process the data: bad column"),
    ],
)
def test_what_the_server_says_of_the_data_is_compared(response: dict[str, Any], complaint: str | None) -> None:
    assert processing_error(response, 5) == complaint
