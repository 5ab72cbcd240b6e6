import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.metadata import (
    AWS_DOCUMENT,
    AZURE_COMPUTE,
    CLOUDS,
    DIGITALOCEAN_DOCUMENT,
    LINODE_DOCUMENT,
    NOT_FOUND,
    ORACLE_DOCUMENT,
    TOKEN,
    UPCLOUD_DOCUMENT,
    Asked,
    MetadataServer,
    Play,
    Reply,
    as_json,
    as_text,
    aws,
    cloudstack,
    gcp,
    openstack,
    paths,
)

from sentinel_collector.discovery.cloud.discovery import PROVIDER_LIMIT_S, TOTAL_LIMIT_S, CloudDiscovery
from sentinel_collector.discovery.cloud.dmi import vendor_from_dmi
from sentinel_collector.discovery.cloud.providers import PROVIDERS
from sentinel_protocol.common.clock import Clock, SystemClock

VENDORS = [provider.vendor_id for provider in PROVIDERS]
GUARD_S = 10.0
NO_DMI = "/nonexistent/dmi"

FOUND = {
    "aws": ("us-west-2", "us-west-2b", "c7i.2xlarge"),
    "gcp": ("europe-west1", "europe-west1-b", "n2-standard-8"),
    "azure": ("westeurope", "2", "Standard_D4s_v5"),
    "hcloud": ("eu-central", "hel1-dc2", ""),
    "upcloud": ("fi-hel2", "", ""),
    "digitalocean": ("nyc3", "", ""),
    "vultr": ("ams", "", ""),
    "oracle": ("eu-frankfurt-1", "Uocm:EU-FRANKFURT-1-AD-1", "VM.Standard.E4.Flex"),
    "linode": ("us-east", "", "g6-standard-2"),
    "alicloud": ("cn-beijing", "cn-beijing-k", "ecs.g7.xlarge"),
    "scaleway": ("fr-par", "fr-par-1", "DEV1-S"),
    "ovh": ("", "", "b3-8"),
    "exoscale": ("ch-gva-2", "ch-gva-2", "Medium"),
}
ACCOUNTS = {
    "aws": "123456789012",
    "gcp": "my-project",
    "azure": "8d10da13-8125-4ba9-a717-bf7490507b3d",
    "oracle": ORACLE_DOCUMENT["tenantId"],
    "linode": LINODE_DOCUMENT["account_euuid"],
    "alicloud": "1857888888888866",
    "scaleway": "6b3f9a2e-54c1-4f7e-8f4f-d5f1c2a3b4c5",
    "ovh": "6e8b0c94265645f39c5abbe63c4113c6",
}


def fields(vendor: str) -> dict[str, str]:
    names = ("cloud_region_id", "cloud_zone_id", "cloud_instance_type")
    values = zip(names, FOUND[vendor], strict=True)
    return {"cloud_vendor_id": vendor, **{name: value for name, value in values if value}}


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def discovery(
    base_urls: dict[str, str],
    *,
    share_identity: bool = False,
    dmi_dir: str = NO_DMI,
    provider_limit_s: float = GUARD_S,
    total_limit_s: float = GUARD_S,
    clock: Clock | None = None,
) -> CloudDiscovery:
    return CloudDiscovery(
        clock=clock or SystemClock(),
        share_identity=share_identity,
        addresses={vendor: address_of(url) for vendor, url in base_urls.items()},
        dmi_dir=dmi_dir,
        provider_limit_s=provider_limit_s,
        total_limit_s=total_limit_s,
    )


def ask_all(
    play: Play, *, share_identity: bool = False, dmi_dir: str = NO_DMI, chunked: bool = False
) -> dict[str, str]:
    """Every provider's probe goes to the one server: whatever is found is found against all the others."""
    with MetadataServer(play, chunked=chunked) as server:
        found = discovery(dict.fromkeys(VENDORS, server.base_url), share_identity=share_identity, dmi_dir=dmi_dir)
        found.start()
        assert found.wait(GUARD_S)
        assert server.asked
        return found.result()


@pytest.mark.parametrize(
    ("vendor", "path"),
    [
        ("aws", "/latest/dynamic/instance-identity/document"),
        ("aws", "/latest/api/token"),
        ("gcp", "/computeMetadata/v1/instance/zone"),
        ("azure", "/metadata/instance/compute?api-version=2021-02-01&format=json"),
        ("oracle", "/opc/v2/instance/"),
        ("linode", "/v1/instance"),
        ("linode", "/v1/token"),
        ("alicloud", "/latest/dynamic/instance-identity/document"),
    ],
)
def test_stand_in_turns_away_whoever_lacks_header_or_method(vendor: str, path: str) -> None:
    with MetadataServer(CLOUDS[vendor]()) as server, pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(server.base_url + path, timeout=GUARD_S)
    refusal.value.close()
    assert 400 <= refusal.value.code < 404


def unused_port_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("vendor", VENDORS)
def test_each_provider_is_recognised_among_all_thirteen(vendor: str) -> None:
    assert ask_all(CLOUDS[vendor]()) == fields(vendor)


@pytest.mark.parametrize("vendor", VENDORS)
def test_account_goes_out_only_with_consent(vendor: str) -> None:
    expected = fields(vendor)
    if vendor in ACCOUNTS:
        expected["cloud_account_id"] = str(ACCOUNTS[vendor])
    assert ask_all(CLOUDS[vendor](), share_identity=True) == expected


@pytest.mark.parametrize("vendor", ["aws", "ovh", "gcp"])
def test_chunked_answers_are_read(vendor: str) -> None:
    assert ask_all(CLOUDS[vendor](), chunked=True) == fields(vendor)


def test_google_is_not_even_asked_for_the_project_without_consent() -> None:
    with MetadataServer(gcp()) as server:
        found = discovery({"gcp": server.base_url})
        found.start()
        assert found.wait(GUARD_S)
        assert [asked.path.rpartition("/")[2] for asked in server.asked] == ["zone", "machine-type"]


def test_imdsv2_is_asked_with_its_token() -> None:
    with MetadataServer(aws()) as server:
        found = discovery({"aws": server.base_url})
        found.start()
        assert found.wait(GUARD_S)
        assert [asked.method for asked in server.asked] == ["PUT", "GET"]
        assert server.asked[1].headers["x-aws-ec2-metadata-token"] == TOKEN
        assert found.result() == fields("aws")


@pytest.mark.parametrize("mishap", ["", "hang"])
def test_imdsv1_stands_in_when_no_token_comes(mishap: str) -> None:
    without_tokens = paths({"/latest/dynamic/instance-identity/document": as_json(AWS_DOCUMENT)})
    with MetadataServer(without_tokens, mishap=mishap, mishap_paths=frozenset({"/latest/api/token"})) as server:
        found = discovery({"aws": server.base_url}, provider_limit_s=1.0)
        found.start()
        assert found.wait(GUARD_S)
        assert found.result() == fields("aws")
        assert server.asked[0].method == "PUT"
        assert server.faults == (1 if mishap else 0)
        assert "x-aws-ec2-metadata-token" not in server.asked[1].headers


@pytest.mark.parametrize("token", ["two\r\nX-Evil: lines", "", "a" * 5000, "sp ace", "ümlaut"])
def test_a_token_that_could_not_stand_in_a_header_is_not_sent_back(token: str) -> None:
    def play(asked: Asked) -> Reply:
        return as_text(token) if asked.method == "PUT" else as_json(AWS_DOCUMENT)

    with MetadataServer(play) as server:
        found = discovery({"aws": server.base_url})
        found.start()
        assert found.wait(GUARD_S)
        assert [asked.method for asked in server.asked] == ["PUT", "GET"]
        assert not {"x-aws-ec2-metadata-token", "x-evil"} & set(server.asked[1].headers)


def always(reply: Reply) -> Play:
    return lambda _asked: reply


def both(first: Play, second: Play) -> Play:
    """A server that serves what two providers serve."""

    def play(asked: Asked) -> Reply:
        reply = first(asked)
        return reply if reply.status == 200 else second(asked)

    return play


IMITATIONS: dict[str, tuple[Callable[[], Play], str | None]] = {
    "another OpenStack": (lambda: openstack("192.0.2.53"), None),
    "another CloudStack": (lambda: cloudstack("zone-1"), None),
    "Eucalyptus' region": (lambda: aws({**AWS_DOCUMENT, "region": "eucalyptus", "availabilityZone": "one"}), None),
    "a zone elsewhere": (lambda: aws({**AWS_DOCUMENT, "availabilityZone": "nova"}), None),
    "a UUID as instance": (lambda: aws({**AWS_DOCUMENT, "instanceId": "83679162-1378-4288"}), None),
    "an account by name": (lambda: aws({**AWS_DOCUMENT, "accountId": "admin"}), None),
    "EC2's document at Hetzner": (lambda: both(aws(v2_required=False), CLOUDS["hcloud"]()), "hcloud"),
    "EC2's document at Vultr": (lambda: both(aws(v2_required=False), CLOUDS["vultr"]()), "vultr"),
    "EC2's document at Alibaba": (lambda: both(CLOUDS["alicloud"](), aws(v2_required=False)), "alicloud"),
    "OpenStack's paths at Oracle": (lambda: both(CLOUDS["oracle"](), openstack("192.0.2.53")), "oracle"),
    "OpenStack's paths at Oracle with OVH's resolver": (
        lambda: both(CLOUDS["oracle"](), openstack("213.186.33.99")),
        "oracle",
    ),
    "CloudStack's paths at OVH": (lambda: both(openstack("213.186.33.99"), cloudstack("ch-gva-2")), "ovh"),
    "UpCloud's path with another's name": (
        lambda: paths({"/metadata/v1.json": as_json({**UPCLOUD_DOCUMENT, "cloud_name": "other"})}),
        None,
    ),
    "DigitalOcean's path without a droplet": (
        lambda: paths({"/metadata/v1.json": as_json({**DIGITALOCEAN_DOCUMENT, "droplet_id": "x"})}),
        None,
    ),
    "Google's path without its flavour": (
        lambda: lambda asked: Reply(200, b"projects/1/zones/europe-west1-b") if "/zone" in asked.path else NOT_FOUND,
        None,
    ),
    "Azure Stack by another name": (
        lambda: always(as_json({**AZURE_COMPUTE, "azEnvironment": "Other"})),
        None,
    ),
}


@pytest.mark.parametrize("name", IMITATIONS)
def test_imitation_is_told_apart(name: str) -> None:
    play, vendor = IMITATIONS[name]
    assert ask_all(play()) == (fields(vendor) if vendor else {})


def test_ovh_zone_of_a_three_zone_region_names_its_region() -> None:
    found = ask_all(openstack("213.186.33.99", "eu-west-par-a"))
    assert (found["cloud_region_id"], found["cloud_zone_id"]) == ("eu-west-par", "eu-west-par-a")


PORTAL = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>region: here\ninstance-id: 1</body></html>"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, PORTAL, (("Content-Type", "text/html"),)),
        Reply(200, b"{}"),
        Reply(200, b"[]"),
        Reply(200, b"null"),
        Reply(200, b""),
        Reply(200, b'"' + b"\xff" * 10 + b'"'),
        Reply(200, b'{"services": 7, "region": {"regioncode": []}, "droplet_id": true}'),
        Reply(200, b'{"region": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
        Reply(302, b"", (("Location", "/login"),)),
        Reply(204),
        Reply(500, b"oops"),
    ],
    ids=lambda reply: f"{reply.status}-{reply.body[:12]!r}",
)
def test_one_answer_for_everything_is_nobody(reply: Reply) -> None:
    assert ask_all(always(reply)) == {}


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_right_body_with_404_is_no_hit(vendor: str) -> None:
    play = CLOUDS[vendor]()
    assert ask_all(lambda asked: play(asked)._replace(status=404)) == {}


def test_redirect_is_not_followed() -> None:
    with MetadataServer(CLOUDS["hcloud"]()) as real:
        target = f"{real.base_url}/hetzner/v1/metadata"
        assert ask_all(always(Reply(301, b"", (("Location", target),)))) == {}
        assert real.asked == []


@pytest.mark.parametrize("value", ["a" * 65, "two words", "semi;colon", "new\nline", "<b>", "ü", "", 7, None, ["x"]])
def test_hostile_value_is_left_out(value: object) -> None:
    compute = {**AZURE_COMPUTE, "vmSize": value}
    expected = {name: text for name, text in fields("azure").items() if name != "cloud_instance_type"}
    assert ask_all(lambda asked: as_json(compute) if "compute" in asked.path else NOT_FOUND) == expected


def test_space_around_a_value_is_stripped() -> None:
    compute = {**AZURE_COMPUTE, "vmSize": " Standard_D4s_v5\n"}
    assert ask_all(lambda asked: as_json(compute) if "compute" in asked.path else NOT_FOUND) == fields("azure")


def test_defaults_are_one_second_each_and_two_in_all() -> None:
    assert (PROVIDER_LIMIT_S, TOTAL_LIMIT_S) == (1.0, 2.0)


@pytest.mark.parametrize("mishap", ["hang", "drip"])
def test_service_that_keeps_everybody_waiting_is_left_when_the_time_is_over(mishap: str) -> None:
    with MetadataServer(aws(), mishap=mishap) as server:
        found = discovery(dict.fromkeys(VENDORS, server.base_url), provider_limit_s=0.5)
        found.start()
        assert found.wait(GUARD_S)
        assert found.result() == {}
    assert 0 < server.faults == server.hung_up


def test_huge_answers_are_cut_off_by_their_size_whatever_the_time() -> None:
    with MetadataServer(aws(), mishap="huge") as server:
        found = discovery(dict.fromkeys(VENDORS, server.base_url), provider_limit_s=3600, total_limit_s=3600)
        found.start()
        assert found.wait(GUARD_S)
        assert found.result() == {}
    assert len(VENDORS) <= server.faults == server.hung_up


@pytest.mark.parametrize("mishap", ["hang", "drip", "huge"])
def test_provider_that_misbehaves_does_not_hold_up_another(mishap: str) -> None:
    with MetadataServer(gcp(), mishap=mishap) as bad:

        def after_the_mishap(asked: Asked) -> Reply:
            assert bad.first_asked.wait(GUARD_S)
            return CLOUDS["aws"]()(asked)

        with MetadataServer(after_the_mishap) as good:
            found = discovery({"gcp": bad.base_url, "aws": good.base_url}, provider_limit_s=3600, total_limit_s=3600)
            found.start()
            assert found.wait(GUARD_S)
            assert found.result() == fields("aws")
    assert bad.faults == 1


def test_better_ranked_imitation_target_is_waited_for_at_the_same_address() -> None:
    play = both(aws(v2_required=False), CLOUDS["hcloud"]())
    with MetadataServer(play, mishap="hang", mishap_paths=frozenset({"/hetzner/v1/metadata"})) as server:
        found = discovery(dict.fromkeys(VENDORS, server.base_url), provider_limit_s=1.0)
        found.start()
        assert found.wait(GUARD_S)
        assert server.faults == 1
        assert found.result() == fields("aws")


def test_better_ranked_provider_wins_though_its_imitation_answers_first() -> None:
    imitation_answered = threading.Event()
    play = both(aws(v2_required=False), CLOUDS["hcloud"]())

    def slow_original(asked: Asked) -> Reply:
        if asked.path == "/hetzner/v1/metadata":
            assert imitation_answered.wait(GUARD_S)
        reply = play(asked)
        if asked.path.endswith("/document"):
            imitation_answered.set()
        return reply

    assert ask_all(slow_original) == fields("hcloud")
    assert imitation_answered.is_set()


def test_all_together_end_at_the_total_limit() -> None:
    with MetadataServer(aws(), mishap="hang") as server:
        found = discovery({"aws": server.base_url}, provider_limit_s=3600, total_limit_s=0.2)
        found.start()
        assert found.wait(GUARD_S)
        assert found.result() == {}
        assert server.first_asked.wait(GUARD_S)
    assert server.faults == server.hung_up == 1


class LeapingClock(SystemClock):
    """Each look at it finds an hour gone."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.looks * 3600.0


def test_limits_are_measured_by_the_given_clock() -> None:
    clock = LeapingClock()
    with MetadataServer(aws(), mishap="hang") as server:
        found = discovery({"aws": server.base_url}, provider_limit_s=1800, total_limit_s=1800, clock=clock)
        found.start()
        assert found.wait(GUARD_S)
        assert clock.looks == 2
        assert found.result() == {}


def test_connection_that_nobody_accepts_ends_with_the_limits_of_production() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = CloudDiscovery(
            clock=SystemClock(),
            share_identity=False,
            addresses=dict.fromkeys(VENDORS, ("127.0.0.1", listener.getsockname()[1])),
            dmi_dir=NO_DMI,
        )
        found.start()
        assert found.wait(GUARD_S)
        assert found.result() == {}


def test_nobody_listens() -> None:
    found = discovery(dict.fromkeys(VENDORS, unused_port_url()))
    assert not found.done()
    found.start()
    assert found.wait(GUARD_S)
    assert found.result() == {}


def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    found = discovery(dict.fromkeys(VENDORS, unused_port_url()))
    found.start()
    assert found.wait(GUARD_S)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_sent_without_start_or_after_stop() -> None:
    with MetadataServer(CLOUDS["aws"]()) as server:
        found = discovery(dict.fromkeys(VENDORS, server.base_url))
        assert found.result() == {}
        assert not found.done()
        found.stop()
        assert found.done()
        found.start()
        assert found.wait(GUARD_S)
        assert server.asked == []


def test_start_twice_asks_once() -> None:
    with MetadataServer(CLOUDS["hcloud"]()) as server:
        found = discovery({"hcloud": server.base_url})
        found.start()
        found.start()
        assert found.wait(GUARD_S)
        assert len(server.asked) == 1


def test_stop_ends_a_discovery_that_hangs() -> None:
    with MetadataServer(aws(), mishap="hang") as server:
        found = discovery({"aws": server.base_url}, provider_limit_s=0.5)
        found.start()
        assert server.first_asked.wait(GUARD_S)
        found.stop()
        assert found.wait(GUARD_S)
        assert found.result() == {}
        assert len(server.asked) == 1


def test_interpreter_does_not_wait_for_a_discovery_that_hangs() -> None:
    script = (
        "import sys\n"
        "from sentinel_collector.discovery.cloud.discovery import CloudDiscovery\n"
        "from sentinel_protocol.common.clock import SystemClock\n"
        "addresses = {'aws': ('127.0.0.1', int(sys.argv[1]))}\n"
        "found = CloudDiscovery(clock=SystemClock(), share_identity=False, addresses=addresses,\n"
        "    dmi_dir='/nonexistent', provider_limit_s=3600, total_limit_s=3600)\n"
        "found.start()\n"
        "sys.stdin.read(1)\n"
    )
    with MetadataServer(aws(), mishap="hang") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", script, server.base_url.rpartition(":")[2]],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert server.first_asked.wait(GUARD_S)
            _, errors = process.communicate(b"x", timeout=GUARD_S)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, errors) == (0, b"")


DMI = {
    "aws": {"sys_vendor": "Amazon EC2", "product_name": "c7i.2xlarge"},
    "gcp": {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
    "azure": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
    "hcloud": {"sys_vendor": "Hetzner", "product_name": "vServer"},
    "upcloud": {"sys_vendor": "UpCloud"},
    "digitalocean": {"sys_vendor": "DigitalOcean", "product_name": "Droplet"},
    "vultr": {"sys_vendor": "Vultr", "product_name": "VC2"},
    "oracle": {"sys_vendor": "QEMU", "chassis_asset_tag": "OracleCloud.com"},
    "linode": {"sys_vendor": "Akamai", "product_name": "Compute Instance"},
    "alicloud": {"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS"},
    "scaleway": {"sys_vendor": "Scaleway"},
    "ovh": {"sys_vendor": "OpenStack Foundation", "product_name": "OpenStack Nova"},
    "exoscale": {"sys_vendor": "Exoscale", "product_name": "Exoscale Compute Platform"},
}
NO_HINT = [
    {},
    {"sys_vendor": "QEMU", "product_name": "Standard PC (i440FX + PIIX, 1996)"},
    {"sys_vendor": "Google", "product_name": "Eve"},
    {"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine", "chassis_asset_tag": "1234"},
    {"sys_vendor": "Xen", "product_name": "HVM domU", "bios_version": "4.11"},
]


def write_dmi(directory: Path, values: dict[str, str]) -> str:
    for name, value in values.items():
        (directory / name).write_text(f"{value}\n")
    return str(directory)


@pytest.mark.parametrize("vendor", VENDORS)
def test_only_the_provider_that_the_firmware_names_is_asked(vendor: str, tmp_path: Path) -> None:
    dmi_dir = write_dmi(tmp_path, DMI[vendor])
    with MetadataServer(CLOUDS[vendor]()) as named, MetadataServer(CLOUDS["hcloud"]()) as other:
        base_urls = {**dict.fromkeys(VENDORS, other.base_url), vendor: named.base_url}
        found = discovery(base_urls, dmi_dir=dmi_dir)
        found.start()
        assert found.wait(GUARD_S)
        assert found.result() == fields(vendor)
        assert other.asked == []


@pytest.mark.parametrize("values", NO_HINT)
def test_firmware_without_a_hint_has_everybody_asked(values: dict[str, str], tmp_path: Path) -> None:
    dmi_dir = write_dmi(tmp_path, values)
    assert vendor_from_dmi(dmi_dir) is None
    assert ask_all(CLOUDS["exoscale"](), dmi_dir=dmi_dir) == fields("exoscale")


def test_xen_instance_of_amazon_is_known_by_its_bios(tmp_path: Path) -> None:
    dmi_dir = write_dmi(tmp_path, {"sys_vendor": "Xen", "product_name": "HVM domU", "bios_version": "4.11.amazon"})
    assert vendor_from_dmi(dmi_dir) == "aws"


def test_new_zone_of_exoscale_is_believed_when_the_firmware_says_exoscale(tmp_path: Path) -> None:
    dmi_dir = write_dmi(tmp_path, DMI["exoscale"])
    found = ask_all(cloudstack("xx-new-9"), dmi_dir=dmi_dir)
    assert (found["cloud_vendor_id"], found["cloud_zone_id"]) == ("exoscale", "xx-new-9")


def test_table_holds_numeric_link_local_or_provider_addresses_only() -> None:
    assert sorted(VENDORS) == sorted(FOUND)
    addresses = {provider.address for provider in PROVIDERS}
    assert addresses == {("169.254.169.254", 80), ("169.254.42.42", 80), ("100.100.100.200", 80)}
