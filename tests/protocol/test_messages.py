"""The conversation's bytes: what version 1 looks like, what older and newer peers may say, what strangers may not."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from locations import TESTS

from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.messages import (
    MAX_COLLECTOR_FRAME_BYTES,
    Ack,
    Finish,
    Finished,
    Hello,
    Ping,
    Reject,
    RejectCode,
    Samples,
    SamplesRaw,
    Welcome,
    decode_from_collector,
    decode_from_uploader,
    encode,
)
from sentinel_protocol.wire.sample import COLUMNS, Sample, encode_sample

GOLDEN = TESTS / "golden" / "protocol-1"
GOLDEN_COLUMNS = 32
FULL = Sample(
    1_700_000_000.125, 312, 1.5, 0.25, 1.75, 1024.5, 2048.25, 12.0, 512.75, 256.0, 128.0, 4096, 8192,
    500.1, 120.5, 379.6, 1500, 2500, 0.5, 4096.0, 1, 4711, 3, 1.25, 0.125, 1.375, 64.5, 2048, 1024, 0.5, 2048.0, 1,
)  # fmt: skip
EMPTY = Sample(1_700_000_001.0)

FROM_COLLECTOR: dict[str, Any] = {
    "hello": Hello(
        1,
        "process-0123",
        "00ff00ff00ff00ff",
        0.5,
        metadata={"job_name": "träning", "tags": {"a": "1"}, "command": ["python", "train.py"]},
        host={"host_vcpus": 8, "host_memory_mib": 16000.5, "host_cpu_model": "x"},
        cloud={"cloud_vendor_id": "aws"},
        first_available_seq=17,
        ping_interval_s=30.0,
        cloud_pending=True,
    ),
    "hello-least": Hello(1, "k", "i", 1.0),
    "samples": Samples(42, [FULL, EMPTY]),
    "finish": Finish(43, 137, "failed", 1_700_000_002.5, peak_memory_mib=65.25, accounting="cgroup", scope="container"),
    "finish-unknown": Finish(0, None, "finished", 1_700_000_002.0),
    "ping": Ping(),
}
FROM_UPLOADER: dict[str, Any] = {
    "welcome": Welcome(43, "run-1", 1_700_000_001.0, 2),
    "ack": Ack(42, finish=True, delivery_error="register: HTTP 401: å", quarantined=True),
    "finished": Finished("run-1", {"run": {"run_status": "finished"}}, ["s3://b/0001.csv.gz"], 1, 42, "s3://b"),
    "reject": Reject(RejectCode.CLOSED, "this run has ended", retry=False, seq=41),
}
FIELDS: dict[Any, int] = {
    Hello: 4,
    Samples: 2,
    Finish: 4,
    Ping: 0,
    Welcome: 1,
    Ack: 1,
    Finished: 1,
    Reject: 1,
}
"""How many fields each message has had from the beginning."""


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text(encoding="ascii"))


def current_samples() -> bytes:
    """Return the golden frame of samples, with the columns that have been added since: its rows leave them empty."""
    tag, first_seq, rows = msgspec.msgpack.decode(golden("samples"))
    assert len(rows[0]) == GOLDEN_COLUMNS
    added = [None] * (len(COLUMNS) - GOLDEN_COLUMNS)
    return msgspec.msgpack.encode([tag, first_seq, [row + added for row in rows]])


@pytest.mark.parametrize("name", FROM_COLLECTOR)
def test_collectors_say_the_same_bytes_as_ever(name: str) -> None:
    assert encode(FROM_COLLECTOR[name]) == (current_samples() if name == "samples" else golden(name))
    assert decode_from_collector(golden(name)) == FROM_COLLECTOR[name]


@pytest.mark.parametrize("name", FROM_UPLOADER)
def test_uploaders_say_the_same_bytes_as_ever(name: str) -> None:
    assert encode(FROM_UPLOADER[name]) == golden(name)
    assert decode_from_uploader(golden(name)) == FROM_UPLOADER[name]


def test_every_golden_file_is_looked_at() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {*FROM_COLLECTOR, *FROM_UPLOADER}
    said = {type(message) for message in (*FROM_COLLECTOR.values(), *FROM_UPLOADER.values())}
    assert said == set(FIELDS)


def test_samples_that_were_encoded_one_by_one_make_the_same_frame() -> None:
    raw = SamplesRaw(42, [msgspec.Raw(encode_sample(FULL)), msgspec.Raw(encode_sample(EMPTY))])
    assert encode(raw) == current_samples()


def _decode(message: object, frame: bytes) -> object:
    is_collector = isinstance(message, Hello | Samples | Finish | Ping)
    return decode_from_collector(frame) if is_collector else decode_from_uploader(frame)


@pytest.mark.parametrize("message", [*FROM_COLLECTOR.values(), *FROM_UPLOADER.values()], ids=lambda one: repr(one)[:20])
def test_an_older_peer_leaves_fields_out_and_a_newer_one_adds_some(message: Any) -> None:
    kind = type(message)
    array = msgspec.msgpack.decode(encode(message))
    names = kind.__struct_fields__
    assert len(array) == 1 + len(names)
    for count in range(FIELDS[kind], len(names) + 1):
        older = _decode(message, msgspec.msgpack.encode(array[: 1 + count]))
        assert older == kind(**{name: getattr(message, name) for name in names[:count]})
    for extra in (["more"], [None, {"deep": [1, [2, {"x": b"y"}]]}], [1] * 100):
        assert _decode(message, msgspec.msgpack.encode(array + extra)) == message


@pytest.mark.parametrize("message", [*FROM_COLLECTOR.values(), *FROM_UPLOADER.values()], ids=lambda one: repr(one)[:20])
def test_a_message_without_what_it_always_had_is_refused(message: Any) -> None:
    array = msgspec.msgpack.decode(encode(message))
    for count in range(FIELDS[type(message)] + 1):
        with pytest.raises(InvalidMessageError):
            _decode(message, msgspec.msgpack.encode(array[:count]))


def test_a_sample_with_a_column_too_many_is_refused() -> None:
    columns = msgspec.msgpack.decode(encode_sample(FULL))
    frame = msgspec.msgpack.encode(["s", 1, [[*columns, 1]]])
    with pytest.raises(InvalidMessageError):
        decode_from_collector(frame)
    assert len(columns) == len(COLUMNS)


DEEP = 200_000


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x91" * DEEP,
        b"\x92\xa4ping" + b"\x91" * DEEP + b"\x01",
        b"\x92\xa4ping" + b"\x81\xa1a" * DEEP + b"\x01",
        b"\x96\xa5hello\x01\xa1k\xa1i\xcb\x3f\xf0\0\0\0\0\0\0\x81\xa1a" + b"\x91" * DEEP + b"\x01",
        b"\x96\xa5hello\x01\xa1k\xa1i\xcb\x3f\xf0\0\0\0\0\0\0\x81\xa1a\x81\x81\x01\x02\x03",
        b"\x96\xa5hello\x01\xa1k\xa1i\xcb\x3f\xf0\0\0\0\0\0\0\x81\xa1a\xd6\xff\xff\xff\xff\xff",
        b"\x96\xa5hello\x01\xa1k\xa1i\xcb\x3f\xf0\0\0\0\0\0\0\x81\xa1a\xc7\x01\x05\x00",
        b"\x93\xa1s\x01\xdd\xff\xff\xff\xff",
        b"\x92\xa6reject\xa7unheard",
        b"\x93\xa1s\xd3\x80\0\0\0\0\0\0\0\x91\x91\xa3nan",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x85\xa5hello",
        b"\x95\xa5hello\x01\xa2\xff\xfe\xa1i\xcb\x3f\xf0\0\0\0\0\0\0",
    ],
    ids=lambda frame: repr(frame[:30]),
)
def test_a_hostile_frame_is_a_bad_message(frame: bytes) -> None:
    for decode in (decode_from_collector, decode_from_uploader):
        with pytest.raises(InvalidMessageError):
            decode(frame)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2**64 - 1, -(2**63)])
def test_extreme_numbers_are_decoded_for_the_receiver_to_judge(value: float) -> None:
    frame = msgspec.msgpack.encode(["s", 1, [[value]]])
    message = decode_from_collector(frame)
    assert isinstance(message, Samples)
    assert repr(message.samples[0].timestamp) == repr(float(value))


def _mutants() -> st.SearchStrategy[bytes]:
    frames = [encode(message) for message in (*FROM_COLLECTOR.values(), *FROM_UPLOADER.values())]

    @st.composite
    def mutant(draw: st.DrawFn) -> bytes:
        frame = bytearray(draw(st.sampled_from(frames)))
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, len(frame)))
            frame[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        return bytes(frame)

    return mutant()


@given(frame=st.one_of(st.binary(max_size=300), _mutants()))
@settings(max_examples=400, deadline=None)
def test_arbitrary_bytes_raise_nothing_else(frame: bytes) -> None:
    for decode in (decode_from_collector, decode_from_uploader):
        try:
            message = decode(frame)
        except InvalidMessageError:
            continue
        # What was taken can be written again: nothing unheard of has come in.
        encode(message)


def test_a_full_chunk_fits_into_a_frame() -> None:
    columns: list[Any] = [1.1e300 if "int" not in str(kind) else 2**63 for kind in Sample.__annotations__.values()]
    assert len(encode(Samples(2**53, [Sample(*columns)] * 128))) < MAX_COLLECTOR_FRAME_BYTES
