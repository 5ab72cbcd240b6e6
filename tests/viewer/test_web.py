"""The server: who gets in, what a name can reach, and that a page hears of what is new."""

import http.cookiejar
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.delivered_runs import packed, sample, write_run
from fakes.process_harness import Home, wait_until
from fakes.viewer_server import STREAM, ViewerServer

HOSTILE = "</script><script>alert(1)</script>\u202e"
BEYOND = ("--host", "0.0.0.0")


def get(url: str, **headers: str) -> tuple[int, str, Any]:
    """Status, body and headers; redirects are not followed."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


@pytest.fixture
def server(home: Home) -> ViewerServer:
    write_run(home.runs, "one", [sample(second) for second in range(60)], job="train")
    write_run(home.runs, "two", [sample(5000 + second) for second in range(60)], job="train", exit_code=139)
    write_run(home.runs, "ü x", [sample(9000)], job=HOSTILE)
    return ViewerServer(home)


def test_the_pages(server: ViewerServer) -> None:
    status, body, headers = get(server.url("/"))
    assert status == 200
    assert "crashed: SIGSEGV (139)" in body
    assert 'href="/run/one"' in body
    assert 'href="/run/%C3%BC%20x"' in body
    assert "<script>alert" not in body
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "connect-src &#x27;self&#x27;" in body
    assert "unsafe" not in body.partition("<title>")[0]
    status, body, _ = get(server.url("/run/%C3%BC%20x"))
    assert status == 200
    assert "<script>alert" not in body
    status, body, _ = get(server.url("/compare?run=one&run=two"))
    assert (status, "Differences from the first run" in body) == (200, True)
    status, body, headers = get(server.url("/file/run/one"))
    assert "attachment" in headers["Content-Disposition"]
    assert "connect-src" not in body.partition("<title>")[0]
    assert get(server.url("/compare?run=one"))[2]["Location"] == "/run/one"


def test_the_list_is_filtered(server: ViewerServer) -> None:
    body = get(server.url("/?q=TRAIN%20two"))[1]
    assert "1 run of 3" in body
    body = get(server.url("/?failed=1"))[1]
    assert "1 run of 3" in body
    assert "show more" in get(server.url("/?limit=1"))[1]
    assert "There is no such run" in get(server.url("/?q=%3Cnobody%3E"))[1]
    assert get(server.url("/?limit=%F0%9D%9F%99"))[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/run/nobody", "/run/../../etc", "/run/%2e%2e%2f%2e%2e%2fetc", "/run/", "/file/run/x", "/events/run/", "/x"],
)
def test_a_name_reaches_nothing_but_runs(path: str, server: ViewerServer) -> None:
    assert get(server.url(path))[0] == 404


def test_a_strangers_name_for_this_machine_is_refused(server: ViewerServer) -> None:
    assert get(server.url("/"), Host="evil.example")[0] == 421
    assert get(server.url("/"), Host="localhost:1")[0] == 200


def test_beyond_this_machine_a_token_is_needed(home: Home) -> None:
    write_run(home.runs, "one", [sample(0)])
    server = ViewerServer(home, *BEYOND)
    address, _, token = server.address.replace("0.0.0.0", "127.0.0.1").partition("?token=")
    assert len(token) >= 32
    assert get(address)[0] == 401
    assert get(f"{address}events")[0] == 401
    assert get(f"{address}?token={token[:-1]}x")[0] == 401
    assert get(f"{address}?token=%C3%BC")[0] == 401
    status, _, headers = get(f"{address}run/one?token={token}&x=1")
    assert (status, headers["Location"]) == (303, "/run/one?x=1")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=strict" in headers["Set-Cookie"]
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar))
    with opener.open(f"{address}?token={token}", timeout=30) as answer:
        assert answer.url == address
        assert "Recorded" in answer.read().decode()


def test_the_token_can_be_given(home: Home) -> None:
    write_run(home.runs, "one", [sample(0)])
    server = ViewerServer(home, *BEYOND, env={"SENTINEL_VIEW_TOKEN": "a-token-of-sixteen"})
    assert server.address.endswith("?token=a-token-of-sixteen")
    done = home.run(STREAM, "web", *BEYOND, env={"SENTINEL_VIEW_TOKEN": "short"})
    assert done.returncode == 2
    assert "needs 16 characters at least" in done.stderr


def test_a_port_that_is_taken_is_said_to_be(server: ViewerServer, home: Home) -> None:
    port = server.url("").rpartition(":")[2]
    done = home.run(STREAM, "web", "--port", port)
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr


def test_ctrl_c_ends_it_also_while_somebody_listens(server: ViewerServer) -> None:
    events = urllib.request.urlopen(server.url("/events"), timeout=30)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) in {0, 130}
    events.close()


def lines_of(url: str) -> Iterator[str]:
    with urllib.request.urlopen(url, timeout=30) as stream:
        for line in stream:
            yield line.decode().strip()


def test_a_page_hears_of_new_rows_and_of_the_end(home: Home) -> None:
    directory = write_run(home.runs, "one", [sample(second) for second in range(10)], state="running")
    server = ViewerServer(home)
    page = get(server.url("/run/one"))[1]
    assert 'data-events="/events/run/one"' in page
    lines = lines_of(server.url("/events/run/one"))
    assert next(lines) == ":"
    (directory / "0002.csv.gz").write_bytes(packed([sample(11)]))
    wait_until(lambda: next(lines) == "event: changed", "the new object is told of")
    description = directory / "run.json"
    description.write_text(description.read_text().replace('"running"', '"finished"'))
    wait_until(lambda: next(lines) == "event: ended", "the end is told of")
    assert list(lines)[-1:] in ([""], ["data:"])
    assert "data-events" not in get(server.url("/run/one"))[1].partition("<script>")[0]


def test_the_list_hears_of_a_new_run(home: Home) -> None:
    server = ViewerServer(home)
    lines = lines_of(server.url("/events"))
    assert next(lines) == ":"
    write_run(home.runs, "one", [sample(0)])
    wait_until(lambda: next(lines) == "event: changed", "the new run is told of")
    lines.close()  # type: ignore[attr-defined]  # a generator
