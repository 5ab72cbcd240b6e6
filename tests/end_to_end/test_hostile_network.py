"""An uploader's published port, prodded from another machine: everything a stranger, and a client, may try.

The two machines are network namespaces; nothing leaves this one. `-s` shows the figures.
"""

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import zmq
from fakes.independent_client import OUT, Chatter, IndependentClient
from fakes.process_harness import UPLOADER, Home, wait_until
from fakes.traffic_recorder import Tap
from fakes.two_machines import CannotMakeError, TwoMachines
from locations import TESTS

from sentinel_protocol.wire.curve_keys import ClientCurveKeys, KeyPair, load_server_key, read_key_pair

PORT, HTTP_PORT = 7740, 9740
RUN_KEY = "alice-trains-in-secret"
WITHIN_S = 1.0
"""What `keys revoke` promises."""
ROUNDS = 3
_SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
_VERSION_3 = _SIGNATURE + b"\x03"
_CURVE_HELLO_BYTES, _CURVE_WELCOME_BYTES = 202, 170
"""Frames of ZeroMQ RFC 26."""


def greeting(mechanism: bytes) -> bytes:
    """ZMTP 3.1 (ZeroMQ RFC 37): 64 bytes, the same for everybody who asks."""
    return _SIGNATURE + b"\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes) -> bytes:
    content = bytes([len(name)]) + name + body
    return b"\x04" + bytes([len(content)]) + content


HELLO_OF_OURS = b"\x00\x1d\x95\xa5hello\x01\xb6" + RUN_KEY.encode() + b"\xa3new\xcb?\xf0" + bytes(6)
RUBBISH = {
    "silence": b"",
    "http": b"GET /metrics HTTP/1.1\r\nHost: uploader\r\n\r\n",
    "tls": b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(193),
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "random": random.Random(5).randbytes(4096),
    "zmtp 1.0": b"\x01\x00\x05\x00hello",
    "zmtp 2.0": _SIGNATURE + b"\x01\x05\x00\x00" + HELLO_OF_OURS,
    "null": greeting(b"NULL") + command(b"READY", b"\x0bSocket-Type\x00\x00\x00\x06DEALER") + HELLO_OF_OURS,
    "plain": greeting(b"PLAIN") + command(b"HELLO", b"\x05alice\x05alice") + HELLO_OF_OURS,
    "curve, then nothing": greeting(b"CURVE"),
    "curve, then a message": greeting(b"CURVE") + HELLO_OF_OURS,
    "curve, then ready": greeting(b"CURVE") + command(b"READY", b"\x0bSocket-Type\x00\x00\x00\x06DEALER"),
    "curve, then a hello of zeros": greeting(b"CURVE") + command(b"HELLO", b"\x01\x00" + bytes(192)),
}


class Published:
    """An uploader with keys on the near machine, reached from the far one."""

    def __init__(self, home: Home, machines: TwoMachines, *, through: tuple[str, ...] = (), **options: Any) -> None:
        self._home = home
        self.machines = machines
        self.address = (machines.near.address, PORT)
        self.url = f"tcp://{machines.near.address}:{PORT}"
        self.keys_dir = home.state / "keys"
        assert home.run(UPLOADER, "keys", "init").returncode == 0
        self.process = home.start_uploader(
            "--bind", self.url, "--http", str(HTTP_PORT), "--upload-interval", "0.5",
            prefix=(*machines.near.prefix, *through), **options,
        )  # fmt: skip
        self.open = ExitStack()
        with machines.far.here():
            # ZeroMQ's threads begin here, and stay.
            self._context: zmq.Context[zmq.Socket[bytes]] = self.open.enter_context(zmq.Context())
            self._context.socket(zmq.PAIR).close()

    def keys_of(self, name: str, *, replace: bool = False) -> ClientCurveKeys:
        """Add a client."""
        words = ["keys", "add", name, *(["--replace"] if replace else [])]
        public, secret = self._home.run(UPLOADER, *words).stdout.splitlines()
        keys = ClientCurveKeys(read_key_pair(secret.partition("=")[2]), load_server_key(public.partition("=")[2]))
        # The uploader's list may be a moment old: a collector that is not on it comes again.
        wait_until(lambda: self._lets_in(keys), f"{name} is on the list")
        return keys

    def connect(self, keys: ClientCurveKeys, *, url: str | None = None) -> IndependentClient:
        """A connection from the far machine."""
        made = self._made(keys, url or self.url)
        self.open.callback(made.close)
        return made

    def _made(self, keys: ClientCurveKeys, url: str) -> IndependentClient:
        return IndependentClient(self._context, url, public=keys.own.public, secret=keys.own.secret, server=keys.server)

    def _lets_in(self, keys: ClientCurveKeys) -> bool:
        with contextlib.closing(self._made(keys, self.url)) as made:
            return made.is_in()

    def dial(self) -> socket.socket:
        """A TCP connection from the far machine."""
        with self.machines.far.here():
            return self.open.enter_context(socket.create_connection(self.address, timeout=20))

    def revoke(self, name: str) -> None:
        assert self._home.run(UPLOADER, "keys", "revoke", name).returncode == 0

    def status(self) -> list[dict[str, Any]]:
        return self._home.status("--spool", str(self._home.directory / "spool"))

    def count(self, metric: str) -> float:
        """A metric of the uploader's, all labels together or, with them in the name, one."""
        found: list[str] = []

        def ask() -> None:
            with (
                self.machines.near.here(),
                urllib.request.urlopen(f"http://127.0.0.1:{HTTP_PORT}/metrics", timeout=20) as answer,
            ):
                found.append(answer.read().decode())

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(30)
        lines = [line for line in found[0].splitlines() if line.startswith(f"sentinel_uploader_{metric}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def log(self) -> str:
        return (self._home.directory / "uploader.log").read_text()


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    try:
        made = TwoMachines()
    except CannotMakeError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def published(home: Home, machines: TwoMachines) -> Iterator[Published]:
    made = Published(home, machines)
    with made.open:
        yield made
    assert made.process.poll() is None, "the uploader has died"
    assert "Traceback" not in made.log()


def begin(client: IndependentClient, key: str = RUN_KEY, incarnation: str = "first") -> Any:
    client.say("hello", 1, key, incarnation, 1.0)
    return client.hear_until("welcome")


def rows(first: int, last: int) -> tuple[Any, ...]:
    return ("s", first, [[1.7e9 + number, number] for number in range(first, last + 1)])


def test_only_the_published_port_is_open(published: Published) -> None:
    listening = {port for _, port in published.machines.near.listening()}
    assert listening == {PORT, HTTP_PORT}
    found = []
    with published.machines.far.here():
        for port in range(1, 1 << 16):
            with socket.socket() as knocking:
                knocking.settimeout(20)
                if knocking.connect_ex((published.address[0], port)) == 0:
                    found.append(port)
    print(f"\nports open to the other machine: {found} of {sorted(listening)} at which the uploader listens")
    assert found == [PORT]


def converse(connection: socket.socket, *steps: tuple[bytes, int]) -> bytes:
    """Say each piece and wait for so many bytes of an answer, then for the end; return all that came back."""
    answer = b""
    with suppress(ConnectionError):
        for piece, expected in steps:
            connection.sendall(piece)
            until = len(answer) + expected
            while len(answer) < until and (more := connection.recv(until - len(answer))):
                answer += more
        while more := connection.recv(4096):
            answer += more
    return answer


def answers_to_rubbish(published: Published, overheard: bytes) -> dict[str, bytes]:
    """Say all of it at once, and return what came back until the uploader had ended each connection."""
    steps = {name: [(prod, 0)] for name, prod in RUBBISH.items()}
    # The most that a stranger gets: one that sends everything at once is disconnected before an answer.
    for name, prod in RUBBISH.items():
        if prod[: len(_VERSION_3)] == _VERSION_3:
            steps[name + ", in steps"] = [(prod[: len(_VERSION_3)], 64), (prod[len(_VERSION_3) :], 0)]
    hello_ends = 64 + _CURVE_HELLO_BYTES
    steps["a session, replayed"] = [
        (overheard[: len(_VERSION_3)], 64),
        (overheard[len(_VERSION_3) : hello_ends], _CURVE_WELCOME_BYTES),
        (overheard[hello_ends:], 0),
    ]
    answers = {}

    def talk(name: str, connection: socket.socket) -> None:
        answers[name] = converse(connection, *steps[name])

    threads = [threading.Thread(target=talk, args=(name, published.dial())) for name in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers.keys() == steps.keys()
    return answers


def commands_in(answer: bytes) -> list[bytes]:
    """Return the ZMTP commands behind the greeting; fails on anything that is none."""
    assert answer[:64] == greeting(b"CURVE")[: len(answer)]
    rest, found = answer[64:], []
    while rest:
        assert rest[0] == 0x04, rest
        content = rest[2 : 2 + rest[1]]
        found.append(content[1 : 1 + content[0]])
        rest = rest[2 + rest[1] :]
    return found


def test_without_a_key_nothing_is_read_or_written_and_no_run_shows(published: Published) -> None:
    alice = published.keys_of("alice")
    with published.machines.far.here():
        tap = published.open.enter_context(Tap(published.address))
    honest = published.connect(alice, url=tap.url)
    begin(honest)
    honest.say(*rows(1, 3))
    assert honest.hear_until("ack")[1] == 3
    wait_until(lambda: published.status()[0]["rows_delivered"] == 3, "it is delivered")
    heard_by = time.time()

    def seen() -> tuple[list[dict[str, Any]], float]:
        # When a run was heard is written down some seconds later, and the honest client is silent meanwhile.
        passing = {"last_heard_at", "late"}
        runs = [{name: value for name, value in run.items() if name not in passing} for run in published.status()]
        return runs, published.count("messages_received_total")

    before = seen()
    answers = answers_to_rubbish(published, bytes(tap.said[0]))
    public, secret = zmq.curve_keypair()
    strangers = {
        "an unknown key": ClientCurveKeys(KeyPair(public, secret), alice.server),
        "a known key without its secret": ClientCurveKeys(KeyPair(alice.own.public, secret), alice.server),
        "a known key, another server's": ClientCurveKeys(alice.own, public),
    }
    for number, (name, keys) in enumerate(strangers.items(), start=1):
        knocking = published.connect(keys, url=tap.url)
        knocking.say("hello", 1, RUN_KEY, "second", 1.0)
        knocking.wait_for(OUT)
        assert knocking.hear(0.0) is None
        answers[name] = bytes(tap.answered[number])
    told = {name: commands_in(answer) for name, answer in answers.items()}
    for name, answer in answers.items():
        words = " ".join(["greeting" if answer else "nothing", *(word.decode() for word in told[name])])
        print(f"{name:40} {len(answer):4} bytes: {words}")
    # An unknown key is told that it is refused. All other bytes belong to a handshake.
    assert told.pop("an unknown key") == [b"WELCOME", b"ERROR"]
    assert answers["an unknown key"].endswith(b"\x05ERROR\x03400")
    assert told["a session, replayed"] == [b"WELCOME"]
    assert all(words in ([], [b"WELCOME"]) for words in told.values())
    assert len(answers["null, in steps"]) == len(greeting(b""))
    assert seen() == before
    assert published.status()[0]["last_heard_at"] <= heard_by
    honest.say(*rows(4, 4))
    assert honest.hear_until("ack")[1] == 4


def test_a_client_reaches_no_other_client_s_run(published: Published) -> None:
    alice = published.connect(published.keys_of("alice"))
    begin(alice)
    alice.say(*rows(1, 3))
    assert alice.hear_until("ack")[1] == 3
    run_id = str(wait_until(lambda: published.status()[0]["run_id"], "it is registered"))
    mallory_keys = published.keys_of("mallory")
    mallory = published.connect(mallory_keys)
    for message in (rows(4, 5), ("finish", 3, 1, "failed", 1.7e9), ("ping",)):
        mallory.say(*message)
        assert mallory.hear_until("reject")[1] == "hello-first"
    # What she would hear of a run that nobody has.
    unknown = begin(mallory, "nobody-has-this")
    guesses = [RUN_KEY, run_id, f"alice/{RUN_KEY}", f"alice:{RUN_KEY}", f"alice\0{RUN_KEY}", f"../alice/{RUN_KEY}"]
    guesses += [run_id[:-1] + digit for digit in "0123456789abcdef" if digit != run_id[-1]]
    heard = []
    for guess in guesses:
        mallory.say("hello", 1, guess, "first", 1.0)
        heard.append(mallory.hear())
        mallory.say("hello", 1, guess, "newer", 1.0)
        heard.append(mallory.hear())
    mallory.say("hello", 1, RUN_KEY, "newest", 1.0)
    assert mallory.hear_until("welcome")[1] == 1
    mallory.say(*rows(1, 9))
    mallory.say("finish", 9, 1, "failed", 1.7e9)
    mallory.hear_until("finished")
    assert all(answer[0] == "reject" or answer[1] == 1 for answer in heard)
    assert heard[0] == unknown
    alice.say(*rows(4, 5))
    assert alice.hear_until("ack")[1] == 5
    alice.say("finish", 5, 0, "finished", 1.7e9)
    assert alice.hear_until("finished")[1] == run_id
    assert run_id not in str([answer for answer in mallory.heard if answer[0] != "reject"])
    (hers,) = [run for run in published.status() if run["client"] == "alice"]
    assert (hers["run_id"], hers["rows_delivered"], hers["state"], hers["exit_code"]) == (run_id, 5, "finished", 0)
    assert {run["client"] for run in published.status()} == {"alice", "mallory"}
    print(f"\nguesses at another client's run: {len(guesses)}, runs of hers that were reached: 0")


def revoked_while_it_talks(published: Published, name: str) -> float:
    """Revoke a key with two connections, one of which has not said a word; return how long they stayed, in seconds."""
    keys = published.keys_of(name)
    open_one, silent_one = published.connect(keys), published.connect(keys)
    assert open_one.is_in()
    assert silent_one.is_in()
    talking = Chatter(open_one)
    try:
        wait_until(lambda: talking.acknowledged, "it is heard")
        published.revoke(name)
        revoked_at = (published.keys_dir / "revoked" / f"{name}.key").stat().st_ctime
        stayed_s = [client.wait_for(OUT) - revoked_at for client in (open_one, silent_one)]
        wait_until(lambda: talking.is_cut_off, "it has tried to go on")
    finally:
        talking.stop()
    print("revoked, and out after {:.3f} s (talking), {:.3f} s (silent)".format(*stayed_s))
    (run,) = [run for run in published.status() if run["client"] == name]
    recorded = run["rows_delivered"] + run["rows_waiting"]
    assert talking.acknowledged <= recorded <= sum(at < revoked_at + WITHIN_S for at in talking.sent)
    assert not published.connect(keys).is_in()
    return max(stayed_s)


def test_a_revoked_key_is_out_within_a_second(published: Published) -> None:
    bob = published.connect(published.keys_of("bob"))
    assert bob.is_in()
    other = Chatter(bob)
    print()
    try:
        for number in range(ROUNDS):
            assert revoked_while_it_talks(published, f"alice-{number}") < WITHIN_S
        heard = other.acknowledged
        wait_until(lambda: other.acknowledged > heard, "others go on")
    finally:
        other.stop()
    assert not bob.has_events()


def test_an_authenticator_without_its_list_admits_and_keeps_no_client(published: Published) -> None:
    alice, bob = published.keys_of("alice"), published.keys_of("bob")
    inside = published.connect(alice)
    begin(inside)
    clients = published.keys_dir / "clients"
    away = clients.rename(published.keys_dir / "away")
    inside.wait_for(OUT)
    knocking = [published.connect(keys) for keys in (alice, bob)]
    assert [client.is_in() for client in knocking] == [False, False]
    away.rename(clients)
    again = wait_until(lambda: [client for client in [published.connect(alice)] if client.is_in()], "the list is back")
    begin(*again)


@pytest.mark.parametrize("fault", ["stop", "break"])
def test_a_broken_authenticator_admits_no_client(home: Home, machines: TwoMachines, fault: str) -> None:
    through = (sys.executable, "-m", "fakes.broken_zap_uploader")
    tests = str(TESTS)
    published = Published(home, machines, through=through, env={"PYTHONPATH": tests}, stdin=subprocess.PIPE)
    with published.open:
        alice, bob = published.keys_of("alice"), published.keys_of("bob")
        inside = published.connect(alice)
        begin(inside)
        assert published.process.stdin is not None
        with published.process.stdin as line:
            line.write(fault + "\n")
        wait_until(lambda: f"{fault}: done" in published.log(), "the authenticator is gone")
        knocking = [published.connect(keys) for keys in (bob, alice)]
        for late in knocking:
            late.say("hello", 1, RUN_KEY, "second", 1.0)
        for late in knocking:
            assert not late.is_in()
            assert late.hear(0.0) is None
        # A connected client is not disturbed: the intake looks its key up itself.
        inside.say(*rows(1, 2))
        assert inside.hear_until("ack")[1] == 2
        assert [run["client"] for run in published.status()] == ["alice"]
