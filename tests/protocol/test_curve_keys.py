"""Key files, the directory of keys, the allow list of a running uploader, and the commands for them."""

import os
import shutil
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth
from fakes.process_harness import UPLOADER, Home, wait_until
from fakes.scripted_backend import SteppedClock
from hypothesis import given
from hypothesis import strategies as st

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import KeyFileError, UsageError
from sentinel_protocol.wire.curve_keys import (
    KEY_BYTES,
    KeyPair,
    decode_key,
    format_certificate,
    load_server_key,
    read_key_pair,
    read_public,
    z85,
)
from sentinel_uploader.server.allow_list import REFRESH_S, AllowList
from sentinel_uploader.server.key_store import KeyStore


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    made = KeyStore(str(tmp_path / "keys"))
    made.init()
    return made


def key_in(path: str) -> bytes:
    return read_key_pair(path).public


@given(key=st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_keys_are_written_as_zeromq_does_and_read_in_both_ways(key: bytes) -> None:
    assert decode_key(z85(key)) == key
    assert decode_key(key.hex()) == key
    assert "".join(map(chr, zmq.utils.z85.encode(key))) == z85(key)


@pytest.mark.parametrize("text", ["", "x", "x" * 64, "#" * 40, "~" * 40, "/etc/sentinel-stream/server-of-mine.k"])
def test_what_is_no_key_is_none(text: str) -> None:
    assert decode_key(text) is None


def test_files_are_read_by_zeromq_s_own_tools_and_theirs_by_ours(tmp_path: Path, store: KeyStore) -> None:
    pair = store.server_pair()
    assert zmq.auth.load_certificate(f"{store.directory}/server.key_secret") == (
        z85(pair.public).encode(),
        z85(pair.secret).encode(),
    )
    _, secret = zmq.auth.create_certificates(str(tmp_path), "theirs")
    os.chmod(secret, 0o600)
    public, private = zmq.auth.load_certificate(secret)
    theirs = read_key_pair(secret)
    assert (z85(theirs.public).encode(), z85(theirs.secret).encode()) == (public, private)


def test_all_files_are_their_owner_s_alone(store: KeyStore) -> None:
    mask = os.umask(0)
    try:
        store.add("alice", replace=False)
    finally:
        os.umask(mask)
    for directory, _, files in os.walk(store.directory):
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        for file in files:
            assert stat.S_IMODE(os.stat(os.path.join(directory, file)).st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_a_secret_that_others_can_read_or_change_is_refused(store: KeyStore, mode: int) -> None:
    path = store.add("alice", replace=False)
    os.chmod(path, mode)
    with pytest.raises(KeyFileError, match=r"others may read it.*chmod 600"):
        read_key_pair(path)
    os.chmod(path, 0o400)
    assert read_key_pair(path).secret


def test_a_public_key_that_others_can_change_is_refused(store: KeyStore) -> None:
    path = f"{store.directory}/server.key"
    os.chmod(path, 0o644)
    assert read_public(path) == store.server_pair().public
    os.chmod(path, 0o664)
    with pytest.raises(KeyFileError, match="others may change it"):
        read_public(path)


def test_what_is_no_key_file_is_named_and_never_shown(tmp_path: Path, store: KeyStore) -> None:
    path = tmp_path / "file"
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="is not a file"):
        read_key_pair(str(path))
    path.unlink()
    path.write_text('metadata\ncurve\n    secret-key = "planted-secret"\n')
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="holds no secret CURVE key") as error:
        read_key_pair(str(path))
    assert "planted" not in str(error.value)
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        read_public(str(tmp_path / "nowhere"))
    with pytest.raises(KeyFileError, match="holds no secret"):
        read_key_pair(f"{store.directory}/server.key")
    assert "secret" not in repr(store.server_pair())
    assert store.server_pair().secret.hex() not in repr(store.server_pair())


def test_the_uploader_s_key_is_given_as_a_file_or_as_itself(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    public = store.server_pair().public
    for given_as in (f"{store.directory}/server.key", public.hex(), z85(public), f"'{z85(public)}'"):
        assert load_server_key(given_as) == public
    monkeypatch.chdir(store.directory)
    assert load_server_key("server.key") == public
    with pytest.raises(KeyFileError, match="nothing-there"):
        load_server_key("nothing-there")


def test_names_are_plain_and_given_once(store: KeyStore) -> None:
    for bad in ("", ".hidden", "a/b", "x" * 65, "a b", "-x", "line\nbreak"):
        with pytest.raises(UsageError, match="client name"):
            store.add(bad, replace=False)
    first = key_in(store.add("alice", replace=False))
    with pytest.raises(UsageError, match=r"alice is on the list.*--replace"):
        store.add("alice", replace=False)
    assert key_in(f"{store.clients_dir}/alice.key_secret") == first
    store.revoke("alice")
    with pytest.raises(UsageError, match=r"alice was revoked.*--replace"):
        store.add("alice", replace=False)
    assert key_in(store.add("alice", replace=True)) != first
    with pytest.raises(UsageError, match="has a server key already"):
        store.init()
    with pytest.raises(UsageError, match="no client 'bob'"):
        store.revoke("bob")


def test_a_copy_knows_since_when_a_client_is_revoked(tmp_path: Path, store: KeyStore) -> None:
    store.add("alice", replace=False)
    os.utime(tmp_path / "keys/clients/alice.key", (1000.0, 1000.0))
    before = os.stat(tmp_path / "keys/clients").st_mtime
    assert [entry.changed_at for entry in store.clients()] == [1000.0]
    store.revoke("alice")
    (revoked,) = store.clients()
    assert revoked.changed_at >= before
    shutil.copytree(tmp_path / "keys", tmp_path / "copy")
    assert KeyStore(str(tmp_path / "copy")).clients() == [revoked]


def test_nothing_is_added_without_a_server_key(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="keys init"):
        KeyStore(str(tmp_path / "none")).add("alice", replace=False)


class Listed:
    """An allow list on a clock that is moved by hand; the files' own times are the machine's."""

    def __init__(self, store: KeyStore) -> None:
        self.store = store
        self.clock = SteppedClock(wall=SystemClock().now())
        self.list = AllowList(store, clock=self.clock)

    def look_again(self) -> None:
        self.clock.advance(REFRESH_S)

    def names(self) -> list[str]:
        self.list.is_allowed(b"")
        return self.list.names()


@pytest.fixture
def listed(store: KeyStore) -> Listed:
    return Listed(store)


def test_the_list_follows_its_directory(listed: Listed) -> None:
    key = key_in(listed.store.add("alice", replace=False))
    assert listed.list.name_of(key) is None
    listed.look_again()
    assert listed.list.name_of(key) == "alice"
    listed.store.add("bob", replace=False)
    listed.store.revoke("alice")
    listed.look_again()
    assert listed.names() == ["bob"]
    assert not listed.list.is_allowed(key)


def test_a_broken_file_concerns_its_own_client_only(listed: Listed, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("alice", "bob", "carol"):
        listed.store.add(name, replace=False)
    listed.look_again()
    assert listed.names() == ["alice", "bob", "carol"]
    Path(listed.store.clients_dir, "bob.key").write_text("rubbish")
    listed.store.revoke("carol")
    for _ in range(3):
        listed.look_again()
        assert listed.names() == ["alice"]
    assert caplog.text.count("client bob cannot connect") == 1


def test_an_overwritten_file_is_noticed_though_its_directory_has_not_changed(listed: Listed) -> None:
    path = Path(listed.store.add("alice", replace=False)).with_suffix(".key")
    long_ago = path.stat().st_mtime - 1000
    os.utime(listed.store.clients_dir, (long_ago, long_ago))
    listed.look_again()
    assert listed.names() == ["alice"]
    other = KeyPair(b"\1" * KEY_BYTES, b"")
    path.write_text(format_certificate(other.public))
    os.utime(listed.store.clients_dir, (long_ago, long_ago))
    listed.clock.advance(60.0)
    assert listed.list.name_of(other.public) == "alice"


def test_a_list_that_cannot_be_read_lets_nobody_in(listed: Listed, caplog: pytest.LogCaptureFixture) -> None:
    key = key_in(listed.store.add("alice", replace=False))
    listed.look_again()
    assert listed.list.is_allowed(key)
    os.rename(listed.store.clients_dir, listed.store.clients_dir + ".away")
    listed.look_again()
    assert not listed.list.is_allowed(key)
    assert "no client can connect" in caplog.text
    os.rename(listed.store.clients_dir + ".away", listed.store.clients_dir)
    listed.look_again()
    assert listed.list.is_allowed(key)


def test_one_key_has_one_name(listed: Listed, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(listed.store.add("alice", replace=False)).with_suffix(".key")
    path.with_name("zoe.key").write_text(path.read_text())
    path.with_name("zoe.key").chmod(0o600)
    listed.look_again()
    assert listed.names() == ["alice"]
    assert "client zoe cannot connect: the same key as that of alice" in caplog.text


def test_a_list_needs_a_server_key_that_is_safe(store: KeyStore) -> None:
    os.chmod(f"{store.directory}/server.key_secret", 0o644)
    with pytest.raises(KeyFileError, match="others may read it"):
        AllowList(store, clock=SystemClock())


@pytest.fixture
def keys_of_home(home: Home) -> str:
    assert home.run(UPLOADER, "keys", "init").returncode == 0
    return str(home.state / "keys")


def test_commands_make_list_and_withdraw_keys(home: Home, keys_of_home: str) -> None:
    added = home.run(UPLOADER, "keys", "add", "node-1")
    server, own = added.stdout.splitlines()
    assert server == f"SENTINEL_SERVER_KEY={read_public(keys_of_home + '/server.key').hex()}"
    assert own == f"SENTINEL_KEY={keys_of_home}/clients/node-1.key_secret"
    pair = read_key_pair(own.partition("=")[2])
    for text in (added.stdout, added.stderr):
        assert pair.secret.hex() not in text
        assert z85(pair.secret) not in text
    assert home.run(UPLOADER, "keys", "revoke", "node-1").returncode == 0
    assert home.run(UPLOADER, "keys", "add", "node-2").returncode == 0
    lines = home.run(UPLOADER, "keys", "list").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["node-2", "active"], ["node-1", "revoked"]]
    assert '"state": "revoked"' in home.run(UPLOADER, "keys", "list", "--json").stdout
    assert not Path(own.partition("=")[2]).exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["add", "bad/name"], "client name 'bad/name'"),
        (["revoke", "nobody"], "no client 'nobody'"),
        (["init"], "has a server key already"),
        (["add", "x", "--keys", "/proc/nowhere"], "no server key in /proc/nowhere"),
    ],
)
def test_commands_say_what_is_wrong(home: Home, keys_of_home: str, words: list[str], complaint: str) -> None:
    done = home.run(UPLOADER, "keys", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    wait_until(lambda: os.path.isdir(keys_of_home), "the keys are where they were")
