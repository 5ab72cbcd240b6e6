"""Connections that look open although the other machine is gone: the cable is cut, no FIN and no RST comes."""

from collections.abc import Iterator

import pytest
import zmq
from fakes.process_harness import wait_until
from fakes.two_machines import CannotMakeError, TwoMachines

from sentinel_collector.delivery import zmq_client
from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire import zmq_options
from sentinel_protocol.wire.messages import Ping, encode
from sentinel_uploader.server.zmq_server import ZmqServer

PORT = 7741
FASTER = {zmq.TCP_KEEPALIVE_IDLE: 1, zmq.TCP_KEEPALIVE_INTVL: 1, zmq.TCP_MAXRT: 2_000}
"""Seconds and milliseconds where the product has minutes. The product sets the same options."""


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    try:
        made = TwoMachines()
    except CannotMakeError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture(autouse=True)
def fast_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in (zmq_options.ROUTER, zmq_options.DEALER):
        assert options.keys() >= FASTER.keys()
        for option, value in FASTER.items():
            monkeypatch.setitem(options, option, value)
    monkeypatch.setattr(zmq_client, "_RECONNECT_MS", (100, 1_000))


def test_a_machine_that_vanishes_is_noticed_at_both_ends_and_comes_back(machines: TwoMachines) -> None:
    url = f"tcp://{machines.near.address}:{PORT}"
    with machines.near.here():
        server = ZmqServer([parse_address(url, bind=True)])
    with machines.far.here():
        client = ZmqClient(parse_address(url, bind=False))

    def is_heard() -> bool:
        return client.send(encode(Ping())) and bool(server.receive(limit=10, timeout_s=1.0)[0])

    with server, client:
        wait_until(is_heard, "they talk")
        assert server.connections == 1
        machines.cut()
        # The uploader has nothing to send: keepalive finds the end.
        wait_until(lambda: server.connections == 0, "the uploader has closed the connection")
        # What the collector sends is not acknowledged by the other kernel.
        wait_until(lambda: not client.send(encode(Ping())), "the collector has closed the connection")
        machines.mend()
        wait_until(is_heard, "they talk again")
        assert server.connections == 1
