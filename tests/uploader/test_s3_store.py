import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes.faults import Recorded
from fakes.http_proxy import HttpProxy
from fakes.keyring import Issued, Keyring
from fakes.offset_clock import OffsetClock
from fakes.rclone import RcloneS3
from fakes.s3 import S3Server
from fakes.tls import make_authority, server_context

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.http.client import HttpClient, HttpResponse, Origin
from sentinel_uploader.backends.objectstore.s3.address import (
    ObjectAddress,
    configured_endpoint,
    object_location,
    parse_uri,
)
from sentinel_uploader.backends.objectstore.s3.errors import parse_error
from sentinel_uploader.backends.objectstore.s3.store import S3Store
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.types import Credentials

PREFIX = "s3://bucket/runs/run-1"
URI = f"{PREFIX}/0001.csv.gz"
BODY = gzip.compress(b"timestamp\n1.5\n", mtime=0)
YEAR_2100 = 4102444800.0


def credentials(issued: Issued, *, region: str | None = "us-east-1") -> Credentials:
    return Credentials(
        access_key=issued.access_key,
        secret_key=issued.secret_key,
        session_token=issued.session_token,
        region=region,
        expires_at=issued.expires_at,
        obtained_at=0.0,
    )


def assert_no_secret(error: BaseException, used: Credentials) -> None:
    shown = f"{error} {error!r} {error.args}"
    for secret in (used.secret_key, used.session_token, used.access_key):
        assert secret not in shown


@pytest.fixture
def keyring() -> Keyring:
    return Keyring()


@pytest.fixture
def server(keyring: Keyring) -> Iterator[S3Server]:
    with S3Server(keyring) as running:
        yield running


@pytest.fixture
def clock() -> OffsetClock:
    return OffsetClock()


@pytest.fixture
def store(server: S3Server, clock: OffsetClock) -> Iterator[S3Store]:
    with closing(S3Store(environ={"AWS_ENDPOINT_URL_S3": server.url}, clock=clock)) as made:
        yield made


@pytest.fixture
def keys(keyring: Keyring) -> Credentials:
    return credentials(keyring.issue(PREFIX, YEAR_2100))


def failed_put(store: S3Store, used: Credentials | None, uri: str = URI) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        store.put(uri, BODY, used)
    if used is not None:
        assert_no_secret(caught.value, used)
    return caught.value


def test_an_object_arrives_signed_and_unchanged(server: S3Server, store: S3Store, keys: Credentials) -> None:
    store.put(URI, BODY, keys)
    store.put(URI, BODY, keys)
    assert server.versions(URI) == [BODY, BODY]
    headers = server.requests.of("put")[0].headers
    assert headers["content-type"] == "application/gzip"
    assert headers["content-length"] == str(len(BODY))
    assert not {"content-encoding", "transfer-encoding", "expect", "x-amz-trailer"} & set(headers)
    assert server.connections_accepted == 1
    assert store.backoff_key(URI) == "s3://bucket"


HARD_KEYS = [
    "plain", "with space", "a+b@c=d&e", "\u00fcml\u00e4ut/\u20ac/\U0001f600", "per%cent%20", "~tilde-_.", "quote'\"<>",
    "colon:semi;comma,", "que?ry#fragment", "dollar$(star)*!", "back\\slash|pipe^`{}[]", "dots/../and/./dots",
    "double//slash",
]  # fmt: skip


@pytest.mark.parametrize("part", HARD_KEYS)
def test_keys_that_need_escaping(keyring: Keyring, server: S3Server, store: S3Store, part: str) -> None:
    prefix = f"s3://bucket/{part}"
    store.put(f"{prefix}/0001.csv.gz", BODY, credentials(keyring.issue(prefix, YEAR_2100)))
    assert server.objects() == {f"{prefix}/0001.csv.gz": BODY}


def test_a_real_server_that_checks_signatures_takes_the_same_keys(tmp_path: Path) -> None:
    with RcloneS3(tmp_path, "bucket") as rclone:
        access_key, secret_key = rclone.keys
        issued = Issued(access_key, secret_key, "session+/token==", YEAR_2100, "")
        with closing(S3Store(environ={"AWS_ENDPOINT_URL": rclone.url}, clock=SystemClock())) as store:
            # Not these: rclone serves a file system, to which dots and double slashes mean something.
            parts = [part for part in HARD_KEYS if ".." not in part and "//" not in part]
            uris = [f"s3://bucket/{part}/0001.csv.gz" for part in parts]
            for uri in uris:
                store.put(uri, BODY, credentials(issued))
            assert [rclone.fetch(uri) for uri in uris] == [BODY] * len(uris)
            big = bytes(range(256)) * 20_000
            store.put("s3://bucket/big/0001.csv.gz", big, credentials(issued))
            assert rclone.fetch("s3://bucket/big/0001.csv.gz") == big
            wrong = Issued(access_key, "another-secret", "session", YEAR_2100, "")
            error = failed_put(store, credentials(wrong), "s3://bucket/wrong/0001.csv.gz")
            assert (error.status_code, error.retry_action) == (403, RetryAction.REFRESH_CREDENTIALS)
            assert rclone.fetch("s3://bucket/wrong/0001.csv.gz") is None


def test_over_tls_with_a_private_authority(tmp_path: Path, keyring: Keyring, keys: Credentials) -> None:
    authority = make_authority(tmp_path)
    with S3Server(keyring, tls=server_context(authority, "IP:127.0.0.1")) as server:
        environ = {"AWS_ENDPOINT_URL_S3": server.url, "AWS_CA_BUNDLE": str(authority.certificate)}
        with closing(S3Store(environ={**environ, "SSL_CERT_FILE": "/nowhere"}, clock=SystemClock())) as store:
            store.put(URI, BODY, keys)
        assert server.versions(URI) == [BODY]
        environ = {"AWS_ENDPOINT_URL_S3": server.url}
        with closing(S3Store(environ=environ, clock=SystemClock())) as store:
            error = failed_put(store, keys)
        assert "certificate not trusted" in str(error)
        assert error.retry_action is RetryAction.RETRY


def test_many_threads_and_credentials_at_once(keyring: Keyring, server: S3Server, store: S3Store) -> None:
    prefixes = [f"s3://bucket/run-{number}" for number in range(8)]

    def put(prefix: str) -> None:
        for number in range(1, 6):
            store.put(f"{prefix}/{number:04d}.csv.gz", BODY, credentials(keyring.issue(prefix, YEAR_2100)))

    threads = [threading.Thread(target=put, args=(prefix,)) for prefix in prefixes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(server.objects()) == 40
    assert server.connections_accepted <= 8


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired"])
def test_revoked_credentials_are_to_be_refreshed(
    keyring: Keyring, server: S3Server, store: S3Store, keys: Credentials, code: str
) -> None:
    assert keyring.revoke_all(code) == 1
    error = failed_put(store, keys)
    assert error.retry_action is RetryAction.REFRESH_CREDENTIALS
    assert code in str(error)
    store.put(URI, BODY, credentials(keyring.issue(PREFIX, YEAR_2100)))
    assert server.versions(URI) == [BODY]


def test_expired_unknown_and_foreign_credentials_are_to_be_refreshed(keyring: Keyring, store: S3Store) -> None:
    assert failed_put(store, credentials(keyring.issue(PREFIX, 1.0))).retry_action is RetryAction.REFRESH_CREDENTIALS
    assert (
        failed_put(store, credentials(Keyring().issue(PREFIX, YEAR_2100))).retry_action
        is RetryAction.REFRESH_CREDENTIALS
    )
    unknown = credentials(Issued("never-issued", "secret", "session", YEAR_2100, PREFIX))
    assert "InvalidAccessKeyId" in str(failed_put(store, unknown))
    error = failed_put(store, credentials(keyring.issue("s3://bucket/other", YEAR_2100)))
    assert (error.retry_action, "AccessDenied" in str(error)) == (RetryAction.REFRESH_CREDENTIALS, True)


def test_without_credentials_nothing_is_sent(server: S3Server, store: S3Store) -> None:
    assert failed_put(store, None).retry_action is RetryAction.REFRESH_CREDENTIALS
    assert server.requests.of() == []


@pytest.mark.parametrize("token", ["planted\r\nX-Other: 1", "planted\u20ac"])
def test_credentials_that_cannot_stand_in_a_header_are_not_shown(
    keyring: Keyring, server: S3Server, store: S3Store, token: str
) -> None:
    issued = keyring.issue(PREFIX, YEAR_2100)
    issued.session_token = token
    error = failed_put(store, credentials(issued))
    assert "characters that HTTP does not allow" in str(error)
    assert "planted" not in str(error)
    assert server.versions(URI) == []


@pytest.mark.parametrize(
    ("fault", "action"),
    [
        ({"code": "SlowDown"}, RetryAction.RETRY), ({"code": "InternalError"}, RetryAction.RETRY),
        ({"code": "ServiceUnavailable"}, RetryAction.RETRY), ({"code": "RequestTimeout"}, RetryAction.RETRY),
        ({"status": 500}, RetryAction.RETRY), ({"status": 503}, RetryAction.RETRY),
        ({"status": 429}, RetryAction.RETRY), ({"status": 307}, RetryAction.RETRY),
        ({"code": "AccessDenied"}, RetryAction.REFRESH_CREDENTIALS),
        ({"status": 403}, RetryAction.REFRESH_CREDENTIALS),
        ({"code": "SignatureDoesNotMatch"}, RetryAction.REFRESH_CREDENTIALS),
        ({"status": 401}, RetryAction.REFRESH_CREDENTIALS),
        ({"code": "NoSuchBucket"}, RetryAction.RETRY_SLOW), ({"status": 400}, RetryAction.RETRY_SLOW),
        ({"status": 404}, RetryAction.RETRY_SLOW), ({"status": 405}, RetryAction.RETRY_SLOW),
        ({"status": 301}, RetryAction.RETRY_SLOW), ({"code": "EntityTooLarge"}, RetryAction.RETRY_SLOW),
    ],
)  # fmt: skip
def test_an_error_answer_is_classified_after_one_attempt_and_never_final(
    server: S3Server, store: S3Store, keys: Credentials, fault: dict[str, Any], action: RetryAction
) -> None:
    injected = server.faults.add("put", **fault, headers={"Retry-After": "9"}, times=1)
    error = failed_put(store, keys)
    assert (injected.fired, error.retry_action, error.retry_after_s) == (1, action, 9.0)
    assert len(server.requests.of()) == 1
    store.put(URI, BODY, keys)
    assert server.versions(URI) == [BODY]


@pytest.mark.parametrize("fault", [{"drop_before": True}, {"drop_after_effect": True}, {"hang": True}])
def test_a_lost_answer_is_to_be_retried_and_a_repeat_changes_nothing(
    server: S3Server, clock: OffsetClock, keys: Credentials, fault: dict[str, bool]
) -> None:
    injected = server.faults.add("put", **fault, times=1)
    client = HttpClient(environ={}, clock=clock, read_timeout_s=0.2)
    with closing(S3Store(environ={"AWS_ENDPOINT_URL_S3": server.url}, clock=clock, client=client)) as store:
        error = failed_put(store, keys)
        assert (injected.fired, error.retry_action, error.status_code) == (1, RetryAction.RETRY, None)
        store.put(URI, BODY, keys)
    assert server.versions(URI) == ([BODY] * 2 if "drop_after_effect" in fault else [BODY])


def test_a_huge_error_answer_is_not_held(server: S3Server, store: S3Store, keys: Credentials) -> None:
    injected = server.faults.add("put", status=503, huge_body_bytes=200 << 20)
    error = failed_put(store, keys)
    assert (injected.fired, error.retry_action) == (1, RetryAction.RETRY)
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", "", ""),
        (b"<html>502</html>", "", ""),
        (b"<Error><Code> SlowDown </Code><Message>a &amp; b</Message></Error>", "SlowDown", "a & b"),
        (b'<!DOCTYPE x [<!ENTITY e "boom">]><Error><Code>&e;</Code></Error>', "&e;", ""),
        (b"<Code>" + b"x" * 2_000_000 + b"</Code>", "", ""),
        (b"<Code>\xff</Code>", "\ufffd", ""),
    ],
)
def test_error_xml_is_read_defensively(body: bytes, code: str, message: str) -> None:
    fault = parse_error(HttpResponse(400, {}, body))
    assert (fault.code, fault.message) == (code, message)


@pytest.mark.parametrize(
    "uri",
    [
        "", "bucket/key", "https://bucket/key", "s3://", "s3://bucket", "s3://bucket/", "s3://b@evil/k",
        "s3://evil.example#/k", "s3://bu cket/k",
    ],
)  # fmt: skip
def test_addresses_that_are_not_objects_are_refused(
    store: S3Store, server: S3Server, keys: Credentials, uri: str
) -> None:
    assert failed_put(store, keys, uri).retry_action is RetryAction.RETRY_SLOW
    assert server.requests.of() == []


def regions_of(server: S3Server) -> list[str]:
    return [request.headers["authorization"].split("/")[2] for request in server.requests.of("put")]


@pytest.mark.parametrize("wrong_region", ["malformed", "redirect"])
def test_a_wrong_region_is_learnt_from_the_answer_and_kept(
    server: S3Server, store: S3Store, keyring: Keyring, keys: Credentials, wrong_region: str
) -> None:
    server.region, server.wrong_region = "eu-west-3", wrong_region
    store.put(URI, BODY, keys)
    store.put(URI, BODY, keys)
    assert regions_of(server) == ["us-east-1", "eu-west-3", "eu-west-3"]
    assert server.versions(URI) == [BODY, BODY]
    # The bucket was moved: what was learnt is not sacred.
    server.region = "eu-north-1"
    store.put(URI, BODY, keys)
    assert regions_of(server)[3:] == ["eu-west-3", "eu-north-1"]


def test_a_region_that_changes_with_every_answer_is_not_followed_for_ever(
    server: S3Server, store: S3Store, keys: Credentials
) -> None:
    def change(_request: Recorded) -> bool:
        server.region = f"region-{len(server.requests.of())}"
        return False

    server.faults.add("put", where=change)
    error = failed_put(store, keys)
    assert "AuthorizationHeaderMalformed" in str(error)
    assert len(server.requests.of("put")) == 2


def test_a_region_that_would_lead_elsewhere_is_refused(server: S3Server, store: S3Store, keyring: Keyring) -> None:
    error = failed_put(store, credentials(keyring.issue(PREFIX, YEAR_2100), region="evil.example/"))
    assert "is not a region" in str(error)
    server.region = "evil.example/"
    assert failed_put(store, credentials(keyring.issue(PREFIX, YEAR_2100))).retry_action is RetryAction.RETRY_SLOW
    assert len(server.requests.of()) == 1


@pytest.mark.parametrize(
    ("environ", "given", "expected"),
    [
        ({}, "eu-west-1", "eu-west-1"),
        ({"AWS_REGION": "eu-west-2", "AWS_DEFAULT_REGION": "eu-west-3"}, None, "eu-west-2"),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, None, "eu-west-3"),
        ({"AWS_REGION": "eu-west-2"}, "eu-west-1", "eu-west-1"),
        ({}, None, "us-east-1"),
    ],
)
def test_the_region_with_an_endpoint_of_ones_own(
    server: S3Server, keyring: Keyring, environ: dict[str, str], given: str | None, expected: str
) -> None:
    server.region = expected
    with closing(S3Store(environ={"AWS_ENDPOINT_URL_S3": server.url, **environ}, clock=SystemClock())) as store:
        store.put(URI, BODY, credentials(keyring.issue(PREFIX, YEAR_2100), region=given))
    assert regions_of(server) == [expected]
    assert server.requests.of("head") == []


@pytest.fixture
def amazon(tmp_path: Path, keyring: Keyring) -> Iterator[tuple[S3Server, HttpProxy, dict[str, str]]]:
    """A stand-in for AWS itself: its host names lead through the proxy to the server, over TLS."""
    hosts = ["s3.amazonaws.com", "bucket.s3.amazonaws.com"]
    for region in ("us-east-1", "eu-west-3"):
        hosts += [f"s3.{region}.amazonaws.com", f"bucket.s3.{region}.amazonaws.com"]
    authority = make_authority(tmp_path)
    context = server_context(authority, *(f"DNS:{host}" for host in hosts))
    with (
        S3Server(keyring, region="eu-west-3", tls=context) as server,
        HttpProxy(routes={f"{host}:443": server.port for host in hosts}) as proxy,
    ):
        yield server, proxy, {"HTTPS_PROXY": proxy.address, "AWS_CA_BUNDLE": str(authority.certificate)}


def test_the_region_is_asked_for_once_where_nobody_tells_it(
    amazon: tuple[S3Server, HttpProxy, dict[str, str]], keyring: Keyring
) -> None:
    server, proxy, environ = amazon
    with closing(S3Store(environ=environ, clock=SystemClock())) as store:
        for _ in range(2):
            store.put(URI, BODY, credentials(keyring.issue(PREFIX, YEAR_2100), region=None))
    assert [request.method for request in server.requests.of()] == ["HEAD", "PUT", "PUT"]
    assert "authorization" not in server.requests.of("head")[0].headers
    assert server.objects() == {URI: BODY}
    assert [line.split()[1] for line in proxy.seen] == [
        "bucket.s3.amazonaws.com:443",
        "bucket.s3.eu-west-3.amazonaws.com:443",
    ]


def test_a_head_that_tells_no_region_is_not_the_end(
    amazon: tuple[S3Server, HttpProxy, dict[str, str]], keyring: Keyring
) -> None:
    server, _, environ = amazon
    silent = server.faults.add("head", status=404)
    with closing(S3Store(environ=environ, clock=SystemClock())) as store:
        store.put(URI, BODY, credentials(keyring.issue(PREFIX, YEAR_2100), region=None))
    assert silent.fired == 1
    assert regions_of(server) == ["us-east-1", "eu-west-3"]


def test_a_bucket_with_a_dot_is_addressed_by_path(
    amazon: tuple[S3Server, HttpProxy, dict[str, str]], keyring: Keyring
) -> None:
    server, proxy, environ = amazon
    keys = credentials(keyring.issue("s3://my.bucket/p", YEAR_2100), region=None)
    with closing(S3Store(environ=environ, clock=SystemClock())) as store:
        store.put("s3://my.bucket/p/0001.csv.gz", BODY, keys)
    assert server.objects() == {"s3://my.bucket/p/0001.csv.gz": BODY}
    assert [line.split()[1] for line in proxy.seen] == ["s3.amazonaws.com:443", "s3.eu-west-3.amazonaws.com:443"]


@pytest.mark.parametrize(
    ("uri", "region", "origin", "path"),
    [
        ("s3://bucket/a b", "us-east-1", Origin("https", "bucket.s3.us-east-1.amazonaws.com", 443), "/a%20b"),
        ("s3://bu.cket/k", "eu-west-1", Origin("https", "s3.eu-west-1.amazonaws.com", 443), "/bu.cket/k"),
        ("s3://Bucket_1/k", "eu-west-1", Origin("https", "s3.eu-west-1.amazonaws.com", 443), "/Bucket_1/k"),
        ("s3://bucket/k", "cn-north-1", Origin("https", "bucket.s3.cn-north-1.amazonaws.com.cn", 443), "/k"),
        ("s3://bucket//k", "eu-west-1", Origin("https", "bucket.s3.eu-west-1.amazonaws.com", 443), "//k"),
    ],
)
def test_where_objects_lie(uri: str, region: str, origin: Origin, path: str) -> None:
    assert object_location(parse_uri(uri), region, None) == (origin, path)


def test_an_endpoint_may_have_a_path_and_the_specific_variable_wins(keyring: Keyring) -> None:
    environ = {"AWS_ENDPOINT_URL_S3": "http://one.example/s3/", "AWS_ENDPOINT_URL": "http://two.example"}
    endpoint = configured_endpoint(environ)
    location = object_location(ObjectAddress("bucket", "k"), "us-east-1", endpoint)
    assert location == (Origin("http", "one.example", 80), "/s3/bucket/k")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL: "):
        configured_endpoint({"AWS_ENDPOINT_URL": "minio:9000"})


@pytest.mark.parametrize("wrong_s", [3600.0, -3600.0, 10 * 365 * 86400.0])
def test_a_clock_that_is_off_is_corrected_by_what_storage_says(
    server: S3Server, store: S3Store, clock: OffsetClock, keys: Credentials, wrong_s: float
) -> None:
    clock.wall_s = wrong_s
    store.put(URI, BODY, keys)
    store.put(URI, BODY, keys)
    assert [request.status for request in server.requests.of()] == [403, 200, 200]
    # Somebody sets our clock right: what was learnt is wrong now, and learnt anew.
    clock.wall_s = 0.0
    store.put(URI, BODY, keys)
    assert [request.status for request in server.requests.of()][3:] == [403, 200]
    assert server.versions(URI) == [BODY] * 3


def test_a_server_that_disagrees_with_its_own_clock_is_tried_twice_and_then_later(
    server: S3Server, store: S3Store, keys: Credentials
) -> None:
    injected = server.faults.add("put", code="RequestTimeTooSkewed")
    error = failed_put(store, keys)
    assert (injected.fired, error.retry_action) == (2, RetryAction.RETRY)


def test_wrong_region_and_wrong_clock_at_once(
    server: S3Server, store: S3Store, clock: OffsetClock, keys: Credentials
) -> None:
    server.region, clock.wall_s = "eu-west-3", 7200.0
    store.put(URI, BODY, keys)
    assert [request.status for request in server.requests.of()] == [400, 403, 200]


def test_without_botocore_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['botocore'] = None\n"
        "from sentinel_protocol.common.clock import SystemClock\n"
        "from sentinel_protocol.common.errors import UsageError\n"
        "from sentinel_uploader.backends.objectstore.s3.store import S3Store\n"
        "try: S3Store(environ={}, clock=SystemClock())\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert "needs botocore" in done.stdout, done.stderr
    assert "sentinel-stream[uploader]" in done.stdout


def test_botocore_is_not_imported_before_it_is_needed() -> None:
    program = "import sys, sentinel_uploader.backends.objectstore.s3.store; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
