"""A metadata service on loopback that plays one provider, an imitation of one, or a fault; strict about headers.

Bodies follow the providers' documentation; names, ids and accounts are made up.
"""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from fakes.background_thread import BackgroundThread

TOKEN = "AQAEAMade-Up_Token=="
HUGE_BYTES = 16 << 20
HANG_LIMIT_S = 20.0
DRIP_PAUSE_S = 0.005
DRIPS = int(HANG_LIMIT_S / DRIP_PAUSE_S)


class Asked(NamedTuple):
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


Play = Callable[[Asked], Reply]
NOT_FOUND = Reply(404, b"<html><body>404 - Not Found</body></html>")

AWS_DOCUMENT = {
    "accountId": "123456789012",
    "architecture": "x86_64",
    "availabilityZone": "us-west-2b",
    "billingProducts": None,
    "imageId": "ami-5fb8c835",
    "instanceId": "i-1234567890abcdef0",
    "instanceType": "c7i.2xlarge",
    "region": "us-west-2",
    "version": "2017-09-30",
}
ALICLOUD_DOCUMENT = {
    "instance-id": "i-2zec1slzwdzrwmvlr4w2",
    "instance-type": "ecs.g7.xlarge",
    "owner-account-id": "1857888888888866",
    "region-id": "cn-beijing",
    "zone-id": "cn-beijing-k",
}
AZURE_COMPUTE = {
    "azEnvironment": "AzurePublicCloud",
    "location": "westeurope",
    "provider": "Microsoft.Compute",
    "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d",
    "vmSize": "Standard_D4s_v5",
    "zone": "2",
}
UPCLOUD_DOCUMENT = {
    "cloud_name": "upcloud",
    "instance_id": "00322b68-0096-4042-9406-faad61922128",
    "platform": "servers",
    "region": "fi-hel2",
}
DIGITALOCEAN_DOCUMENT = {"droplet_id": 2756294, "hostname": "sample-droplet", "region": "nyc3", "tags": []}
VULTR_DOCUMENT = {
    "hostname": "guest",
    "instance-v2-id": "91b07056-af72-4551-b15b-d57d34071be9",
    "instanceid": "50190000",
    "region": {"countrycode": "NL", "regioncode": "AMS"},
}
ORACLE_DOCUMENT = {
    "availabilityDomain": "Uocm:EU-FRANKFURT-1-AD-1",
    "canonicalRegionName": "eu-frankfurt-1",
    "id": "ocid1.instance.oc1.eu-frankfurt-1.abtheljs",
    "region": "eu-frankfurt-1",
    "shape": "VM.Standard.E4.Flex",
    "tenantId": "ocid1.tenancy.oc1.." + "a" * 60,
}
LINODE_DOCUMENT = {
    "account_euuid": "D0C1C361-AAF4-4404-B05904FDB58C42A2",
    "host_uuid": "3d4a1f8c-1111-2222-3333-444444444444",
    "id": 12345678,
    "region": "us-east",
    "type": "g6-standard-2",
}
SCALEWAY_DOCUMENT = {
    "commercial_type": "DEV1-S",
    "id": "d67f36bc-8b1c-4f6c-9a51-0d4f2b1f5a77",
    "location": {"zone_id": "par1"},
    "organization": "6b3f9a2e-54c1-4f7e-8f4f-d5f1c2a3b4c5",
    "zone": "fr-par-1",
}
OPENSTACK_META_DATA = {
    "availability_zone": "nova",
    "project_id": "6e8b0c94265645f39c5abbe63c4113c6",
    "uuid": "83679162",
}
HETZNER_METADATA = (
    "availability-zone: hel1-dc2\nhostname: my-server\ninstance-id: 42\npublic-ipv4: 192.0.2.4\nregion: eu-central\n"
    "private-networks:\n- ip: 10.0.0.2\n  region: not-this-one\n"
)
EC2_NAMES = "ami-id\nhostname\ninstance-id\ninstance-type\nplacement/\n"


def as_json(value: object) -> Reply:
    return Reply(200, json.dumps(value).encode(), (("Content-Type", "application/json"),))


def as_text(value: str) -> Reply:
    return Reply(200, value.encode())


def paths(answers: Mapping[str, Reply]) -> Play:
    """Answer GET of these paths."""
    return lambda asked: answers.get(asked.path, NOT_FOUND) if asked.method == "GET" else Reply(405)


def with_token(lifetime: str, header: str, path: str, inner: Play, *, required: bool = True) -> Play:
    """Hand out a token for a PUT with a lifetime of 1 to 21600 s, and demand it (where `required`) elsewhere."""

    def play(asked: Asked) -> Reply:
        if asked.path == path:
            seconds = asked.headers.get(lifetime, "")
            good = asked.method == "PUT" and seconds.isdecimal() and 1 <= int(seconds) <= 21600
            return as_text(TOKEN) if good else Reply(400)
        return inner(asked) if asked.headers.get(header, "" if required else TOKEN) == TOKEN else Reply(401)

    return play


def with_header(name: str, value: str, inner: Play) -> Play:
    """Demand a header."""
    return lambda asked: inner(asked) if asked.headers.get(name) == value else Reply(403, b"missing header")


def aws(document: Mapping[str, Any] = AWS_DOCUMENT, *, v2_required: bool = True) -> Play:
    inner = paths({"/latest/dynamic/instance-identity/document": as_json(document), **EC2_PATHS})
    return with_token(
        "x-aws-ec2-metadata-token-ttl-seconds",
        "x-aws-ec2-metadata-token",
        "/latest/api/token",
        inner,
        required=v2_required,
    )


EC2_PATHS = {
    "/latest/meta-data/": as_text(EC2_NAMES),
    "/latest/meta-data/instance-id": as_text("i-0000000a"),
    "/latest/meta-data/instance-type": as_text("b3-8"),
    "/latest/meta-data/placement/availability-zone": as_text("nova"),
}
"""What OpenStack, Hetzner, Vultr, CloudStack and others serve for the sake of EC2's clients."""


def gcp(zone: str = "projects/123456/zones/europe-west1-b") -> Play:
    flavor = (("Metadata-Flavor", "Google"),)
    base = "/computeMetadata/v1"
    return with_header(
        "metadata-flavor",
        "Google",
        paths(
            {
                f"{base}/instance/zone": Reply(200, zone.encode(), flavor),
                f"{base}/instance/machine-type": Reply(200, b"projects/123456/machineTypes/n2-standard-8", flavor),
                f"{base}/project/project-id": Reply(200, b"my-project", flavor),
            }
        ),
    )


def openstack(resolver: str, zone: str = "nova") -> Play:
    base = "/openstack/latest"
    return paths(
        {
            f"{base}/network_data.json": as_json({"services": [{"type": "dns", "address": resolver}], "links": []}),
            f"{base}/meta_data.json": as_json({**OPENSTACK_META_DATA, "availability_zone": zone}),
            **EC2_PATHS,
        }
    )


def cloudstack(zone: str) -> Play:
    base = "/latest/meta-data"
    answers = {f"{base}/availability-zone": as_text(zone), f"{base}/service-offering": as_text("Medium")}
    return paths({**EC2_PATHS, **answers, f"{base}/instance-id": as_text("5a8e7f3c-9d7b-4a55-9d6c-0f4c6a5f0a11")})


def linode() -> Play:
    inner = with_header("accept", "application/json", paths({"/v1/instance": as_json(LINODE_DOCUMENT)}))
    return with_token("metadata-token-expiry-seconds", "metadata-token", "/v1/token", inner)


def alicloud() -> Play:
    inner = paths({"/latest/dynamic/instance-identity/document": as_json(ALICLOUD_DOCUMENT), **EC2_PATHS})
    return with_token(
        "x-aliyun-ecs-metadata-token-ttl-seconds", "x-aliyun-ecs-metadata-token", "/latest/api/token", inner
    )


CLOUDS: dict[str, Callable[[], Play]] = {
    "aws": aws,
    "gcp": gcp,
    "azure": lambda: with_header(
        "metadata",
        "true",
        paths({"/metadata/instance/compute?api-version=2021-02-01&format=json": as_json(AZURE_COMPUTE)}),
    ),
    "hcloud": lambda: paths({"/hetzner/v1/metadata": as_text(HETZNER_METADATA), **EC2_PATHS}),
    "upcloud": lambda: paths({"/metadata/v1.json": as_json(UPCLOUD_DOCUMENT)}),
    "digitalocean": lambda: paths({"/metadata/v1.json": as_json(DIGITALOCEAN_DOCUMENT)}),
    "vultr": lambda: paths({"/v1.json": as_json(VULTR_DOCUMENT), **EC2_PATHS}),
    "oracle": lambda: with_header(
        "authorization", "Bearer Oracle", paths({"/opc/v2/instance/": as_json(ORACLE_DOCUMENT)})
    ),
    "linode": linode,
    "alicloud": alicloud,
    "scaleway": lambda: paths({"/conf?format=json": as_json(SCALEWAY_DOCUMENT)}),
    "ovh": lambda: openstack("213.186.33.99"),
    "exoscale": lambda: cloudstack("ch-gva-2"),
}


class _Server(ThreadingHTTPServer):
    # room for all providers' connections at once: a SYN that finds the queue full is sent again after a second
    request_queue_size = 64
    # the handlers' threads are joined at the end: one that outlives its test would be a leak
    daemon_threads = False
    block_on_close = True


class MetadataServer(BackgroundThread):
    """Serves `play` on a loopback port as long as the `with` lasts; `asked` holds what came, in order.

    Requests for `mishap_paths` (all when empty) meet the `mishap`: `hang` never answers, `drip` sends a byte at a time
    without end, `huge` sends more than anybody wants. `faults` counts them, `hung_up` those that the client then left.
    `chunked` sends every good answer in chunks.
    """

    def __init__(
        self, play: Play, *, mishap: str = "", mishap_paths: frozenset[str] = frozenset(), chunked: bool = False
    ) -> None:
        self.asked: list[Asked] = []
        self.faults = 0
        self.hung_up = 0
        self.first_asked = threading.Event()
        self._pause = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                asked = Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
                server.asked.append(asked)
                server.first_asked.set()
                if mishap and (not mishap_paths or self.path in mishap_paths):
                    server.faults += 1
                    server._misbehave(self, mishap)
                else:
                    self._reply(play(asked))

            def do_PUT(self) -> None:
                self.do_GET()

            def _reply(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                if chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for start in range(0, len(reply.body), 7):
                        part = reply.body[start : start + 7]
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    self.wfile.write(reply.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's own name
                """Keep the test's output clean."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}"

    def work(self) -> None:
        """Serve."""
        self._server.serve_forever(poll_interval=0.01)

    def end(self) -> None:
        """Stop; returns when every handler has ended."""
        self._server.shutdown()
        self._server.server_close()

    def _misbehave(self, handler: BaseHTTPRequestHandler, mishap: str) -> None:
        try:
            if mishap == "huge":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"7" * HUGE_BYTES)
            elif mishap == "drip":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
                for _ in range(DRIPS):
                    handler.wfile.write(b"7")
                    self._pause.wait(DRIP_PAUSE_S)
            else:
                handler.connection.settimeout(HANG_LIMIT_S)
                if handler.connection.recv(1) == b"":
                    self.hung_up += 1
        except ConnectionError:
            self.hung_up += 1
