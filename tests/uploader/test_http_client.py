import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.faults import Recorded
from fakes.http_proxy import HttpProxy
from fakes.strict_http_server import Reply, StrictHttpServer
from fakes.tls import make_authority, server_context

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.http.client import HttpClient, HttpResponse, Origin, parse_origin, parse_retry_after
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction


class Echo(StrictHttpServer):
    """Answers with the body that it was sent, `303` to another place for `/elsewhere`."""

    def read(self, request: Recorded) -> None:
        request.call = request.method.lower()

    def perform(self, request: Recorded) -> Reply:
        if request.path == "/elsewhere":
            return Reply(303, b"", {"Location": f"{self.url}/"})
        return Reply(200, request.body)


def client(environ: dict[str, str] | None = None, **limits: float) -> contextlib.closing[HttpClient]:
    return contextlib.closing(HttpClient(environ=environ or {}, clock=SystemClock(), **limits))  # type: ignore[arg-type]  # one of the limits is an int


def post(http: HttpClient, url: str, path: str = "/", body: bytes = b"x") -> HttpResponse:
    origin, prefix = parse_origin(url)
    return http.request("call", "POST", origin, prefix + path, headers={"Authorization": "Bearer planted"}, body=body)


@contextlib.contextmanager
def raw_server(converse: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """One connection after another is given to `converse`, with an event that is set at the end of the test."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.01)

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(10)
                        converse(connection, over)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            thread.join(10)
            assert not thread.is_alive()


def test_requests_share_a_connection_and_arrive_whole() -> None:
    body = bytes(range(256)) * 1000
    with Echo() as server, client() as http:
        assert [post(http, server.url, body=body).body for _ in range(3)] == [body] * 3
        assert server.requests.of()[0].headers["user-agent"].startswith("sentinel-stream/")
        assert server.connections_accepted == 1


@pytest.mark.parametrize("path", ["/a/../b", "/a/./b", "//a", "/%2e%2E/x", "/a%20b%2Bc@d~", "/%C3%A9?q=%2F"])
def test_a_path_goes_out_byte_for_byte(path: str) -> None:
    with Echo() as server, client() as http, HttpProxy() as proxy:
        post(http, server.url, path)
        assert server.requests.of()[0].path == path
        with client({"http_proxy": proxy.address}) as proxied:
            post(proxied, server.url, path)
        assert proxy.seen == [f"POST {server.url}{path} HTTP/1.1"]


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with client() as http, pytest.raises(DeliveryError, match=f"^call: 127.0.0.1:{port}: Connection refused") as caught:
        post(http, f"http://127.0.0.1:{port}")
    assert caught.value.retry_action is RetryAction.RETRY
    assert caught.value.status_code is None


@pytest.mark.parametrize("fault", [{"drop_before": True}, {"drop_after_effect": True}])
def test_a_reset_connection_is_to_be_retried_and_the_next_request_works(fault: dict[str, bool]) -> None:
    with Echo() as server, client() as http:
        dropped = server.faults.add("post", times=1, **fault)
        with pytest.raises(DeliveryError) as caught:
            post(http, server.url)
        assert dropped.fired == 1
        assert caught.value.retry_action is RetryAction.RETRY
        assert post(http, server.url).status == 200


def test_a_silent_server_is_left_after_the_read_timeout() -> None:
    with Echo() as server, client(read_timeout_s=0.2) as http:
        silence = server.faults.add("post", hang=True)
        with pytest.raises(DeliveryError, match="timed out") as caught:
            post(http, server.url)
        assert silence.fired == 1
        assert caught.value.retry_action is RetryAction.RETRY


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"]
)
def test_a_dripping_server_is_left_at_the_deadline(beginning: bytes) -> None:
    dripped = []

    def drip(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(beginning)
        while not over.wait(0.02):
            connection.sendall(b"H")
            dripped.append(1)

    with (
        raw_server(drip) as url,
        client(read_timeout_s=5, total_timeout_s=0.4) as http,
        pytest.raises(DeliveryError, match=r"not complete after 0\.4"),
    ):
        post(http, url)
    assert len(dripped) > 3


def test_a_server_that_stops_reading_is_left() -> None:
    stalled = []

    def stall(connection: socket.socket, over: threading.Event) -> None:
        stalled.append(connection.recv(10))
        over.wait(20)

    with raw_server(stall) as url, client(read_timeout_s=0.3) as http, pytest.raises(DeliveryError, match="timed out"):
        post(http, url, body=bytes(32 << 20))
    assert stalled == [b"POST / HTT"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500,
    ],
)
def test_an_answer_that_is_not_http_or_breaks_off_is_no_answer(answer: bytes) -> None:
    def reply(connection: socket.socket, _over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with raw_server(reply) as url, client() as http, pytest.raises(DeliveryError, match=r"^call: ") as caught:
        post(http, url)
    assert caught.value.retry_action is RetryAction.RETRY


def test_an_answer_of_200_mb_is_not_read() -> None:
    with Echo() as server, client() as http:
        huge = server.faults.add("post", huge_body_bytes=200 << 20, times=2)
        with pytest.raises(DeliveryError, match="more than 1048576 bytes") as caught:
            post(http, server.url)
        assert (huge.fired, caught.value.retry_action) == (1, RetryAction.RETRY)
        # Of an error only the beginning is kept: its status counts.
        server.faults.clear()
        server.faults.add("post", status=400, huge_body_bytes=200 << 20, times=1)
        refused = post(http, server.url)
        assert (refused.status, len(refused.body)) == (400, 1 << 20)
        assert post(http, server.url).status == 200


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with Echo() as server, client() as http:
        assert post(http, server.url, "/elsewhere").status == 303
        assert len(server.requests.of()) == 1


def test_closing_fails_the_requests_under_way() -> None:
    with Echo() as server, client() as http:
        silence = server.faults.add("post", hang=True)
        errors: list[DeliveryError] = []

        def call() -> None:
            with pytest.raises(DeliveryError) as caught:
                post(http, server.url)
            errors.append(caught.value)

        thread = threading.Thread(target=call)
        thread.start()
        server.requests.wait_until(lambda: silence.fired == 1)
        http.close()
        thread.join(10)
        assert not thread.is_alive()
        assert errors[0].retry_action is RetryAction.RETRY
        with pytest.raises(DeliveryError, match="closed"):
            post(http, server.url)


def test_a_header_that_cannot_be_sent_is_not_quoted() -> None:
    with Echo() as server, client() as http:
        origin, _ = parse_origin(server.url)
        with pytest.raises(DeliveryError, match="characters that HTTP does not allow") as caught:
            http.request("call", "POST", origin, "/", headers={"Authorization": "Bearer planted\nX: 1"})
        assert "planted" not in str(caught.value)
        assert server.requests.of() == []


def test_plain_http_goes_through_the_proxy_with_its_login() -> None:
    with Echo() as server, HttpProxy(routes={"api.example:80": server.port}, login="user:p@ss word") as proxy:
        with client({"HTTP_PROXY": f"http://user:p%40ss%20word@{proxy.address}"}) as http:
            assert post(http, "http://api.example", "/x").status == 200
            assert post(http, "http://api.example", "/y").status == 200
        assert proxy.seen == ["POST http://api.example/x HTTP/1.1", "POST http://api.example/y HTTP/1.1"]
        assert server.requests.of()[0].headers["host"] == "api.example"
        assert "proxy-authorization" not in server.requests.of()[0].headers
        with client({"HTTP_PROXY": f"http://user:planted@{proxy.address}"}) as http:
            assert post(http, "http://api.example").status == 407


def test_https_goes_through_a_tunnel(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    context = server_context(authority, "DNS:api.example")
    with Echo(tls=context) as server, HttpProxy(routes={"api.example:443": server.port}, login="user:pw") as proxy:
        environ = {"https_proxy": f"http://user:pw@{proxy.address}", "SSL_CERT_FILE": str(authority.certificate)}
        with client(environ) as http:
            assert post(http, "https://api.example", "/x", b"body").body == b"body"
        assert [line.split(" HTTP/")[0] for line in proxy.seen] == ["CONNECT api.example:443"]
        environ["https_proxy"] = f"http://user:planted@{proxy.address}"
        with client(environ) as http, pytest.raises(DeliveryError, match="407") as caught:
            post(http, "https://api.example")
        assert "planted" not in str(caught.value)


def test_a_proxy_that_is_away_is_named_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with client({"HTTPS_PROXY": f"http://user:planted@{address}"}) as http, pytest.raises(DeliveryError) as caught:
        post(http, "https://api.example")
    assert f"through the proxy http://{address}: Connection refused" in str(caught.value)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("no_proxy", ["*", "127.0.0.1", "other, 127.0.0.1:{port}", "127.0.0.0/8", ".0.0.1"])
def test_no_proxy_is_honoured(no_proxy: str) -> None:
    with Echo() as server, HttpProxy() as proxy:
        environ = {"HTTP_PROXY": proxy.address, "NO_PROXY": no_proxy.format(port=server.port)}
        with client(environ) as http:
            assert post(http, server.url).status == 200
        assert proxy.seen == []


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_PROXY": "{proxy}", "NO_PROXY": "27.0.0.1,other"},
        {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "{proxy}"},
        {"REQUEST_METHOD": "GET", "HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "{proxy}"},
    ],
)
def test_the_proxy_is_used(environ: dict[str, str]) -> None:
    with Echo() as server, HttpProxy() as proxy:
        with client({name: value.format(proxy=proxy.address) for name, value in environ.items()}) as http:
            assert post(http, server.url).status == 200
        assert len(proxy.seen) == 1


@pytest.mark.parametrize(
    "environ", [{"REQUEST_METHOD": "GET", "HTTP_PROXY": "{proxy}"}, {"HTTP_PROXY": "{proxy}", "http_proxy": ""}]
)
def test_the_proxy_is_not_used(environ: dict[str, str]) -> None:
    with Echo() as server, HttpProxy() as proxy:
        with client({name: value.format(proxy=proxy.address) for name, value in environ.items()}) as http:
            assert post(http, server.url).status == 200
        assert proxy.seen == []


@pytest.mark.parametrize("value", ["socks5://user:planted@host:1", "http://user:planted@[::1", "http://"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(value: str) -> None:
    with pytest.raises(UsageError, match="https_proxy") as caught:
        HttpClient(environ={"HTTPS_PROXY": value}, clock=SystemClock())
    assert "planted" not in str(caught.value)


def test_a_private_authority_is_trusted_when_named_and_not_otherwise(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with Echo(tls=server_context(authority, "IP:127.0.0.1")) as server:
        with client({"SSL_CERT_FILE": str(authority.certificate)}) as http:
            assert post(http, server.url, body=b"x" * 300_000).body == b"x" * 300_000
        with client() as http, pytest.raises(DeliveryError, match="certificate not trusted: ") as caught:
            post(http, server.url)
        assert caught.value.retry_action is RetryAction.RETRY


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with (
        Echo(tls=server_context(authority, "DNS:other.example")) as server,
        client({"SSL_CERT_FILE": str(authority.certificate)}) as http,
        pytest.raises(DeliveryError, match=r"certificate not trusted: .*127"),
    ):
        post(http, server.url)
    assert server.requests.of() == []


def test_tls_towards_a_plain_server_fails_clearly() -> None:
    with Echo() as server, client(read_timeout_s=5) as http, pytest.raises(DeliveryError, match="TLS failed") as caught:
        post(http, server.url.replace("http:", "https:"))
    assert caught.value.retry_action is RetryAction.RETRY


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_an_authority_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"AWS_CA_BUNDLE=.*ca\.pem: cannot read"):
        HttpClient(
            environ={"AWS_CA_BUNDLE": str(path)}, clock=SystemClock(), authority_variables=("AWS_CA_BUNDLE", "X")
        )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("1.5", 1.5), ("99999999", 3600.0), ("9" * 5000, None),
        ("-1", None), ("nan", None), ("inf", None), ("soon", None), ("", None), (None, None),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0), ("Thu, 41 Jan 1970 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, now=1000.0) == expected


def test_a_retry_after_date_is_measured_by_the_servers_clock() -> None:
    answer = HttpResponse(
        503, {"Date": "Thu, 01 Jan 1970 00:00:00 GMT", "Retry-After": "Thu, 01 Jan 1970 00:00:09 GMT"}, b""
    )
    assert answer.retry_after_s(now=1e9) == 9.0


@pytest.mark.parametrize(
    ("url", "origin", "prefix"),
    [
        ("https://api.example", Origin("https", "api.example", 443), ""),
        ("http://api.example:8080/v1/x/", Origin("http", "api.example", 8080), "/v1/x"),
        ("http://[::1]:80", Origin("http", "[::1]", 80), ""),
    ],
)
def test_addresses(url: str, origin: Origin, prefix: str) -> None:
    assert parse_origin(url) == (origin, prefix)
    assert origin.netloc == url.split("/")[2].removesuffix(":80")


@pytest.mark.parametrize(
    "url", ["", "api.example", "ftp://api.example", "https://", "https://u:planted@h", "https://h/?q", "https://h/#f", "http://[:"]
)  # fmt: skip
def test_addresses_that_cannot_be_used(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_origin(url)
    assert "planted" not in str(caught.value)
