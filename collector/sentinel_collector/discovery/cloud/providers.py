"""The metadata services of thirteen providers: their requests, and how their responses are recognised.

Each provider is a generator. It yields a `Request`, is sent the `MetadataResponse` (`None` when no complete 200 came in
time), and returns the fields that it found, or `None`. Any server may response on a link-local address, so
`cloud_fields` accepts only short plain words, and each provider requires a value that no other service has.

Vendor ids are those of the Spare Cores navigator where it has the vendor (aws, gcp, azure, hcloud, upcloud, ovh,
alicloud, vultr), else the vendor's short name. All addresses are numeric: a name lookup would block.
"""

import re
from collections.abc import Callable, Generator
from typing import NamedTuple

from sentinel_collector.discovery.cloud.http import Address, MetadataResponse, Request
from sentinel_collector.discovery.cloud.responses import (
    Fields,
    basename,
    cloud_fields,
    get_str,
    get_strs,
    header_token,
    json_object,
    text,
    validated_word,
)

_LINK_LOCAL = ("169.254.169.254", 80)
_TOKEN_LIMIT_SHARE = 0.5
"""A container one hop too far away never gets IMDSv2's token. The rest of the time is for a request without it."""


class Context(NamedTuple):
    """What a provider may use: the vendor that the firmware names, and the user's consent."""

    dmi_vendor: str | None
    share_identity: bool


Steps = Generator[Request, MetadataResponse | None, Fields | None]


class Provider(NamedTuple):
    """A metadata service."""

    vendor_id: str
    address: Address
    steps: Callable[[Context], Steps]


def _aws(_context: Context) -> Steps:
    """Amazon EC2 user guide, "Instance identity documents", "Use the Instance Metadata Service" (v2, then v1).

    Many services have `/latest/meta-data`, and some have a token. Only EC2 has a document with a 12-digit account, an
    instance `i-…`, and a zone of a region with a name of Amazon's form.
    """
    token = header_token((yield _token_request("/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds")))
    headers = (("X-aws-ec2-metadata-token", token),) if token else ()
    document = json_object((yield Request("/latest/dynamic/instance-identity/document", headers)))
    region, zone, account = get_strs(document, "region", "availabilityZone", "accountId")
    if not (
        re.fullmatch(r"\d{12}", account)
        and re.fullmatch(r"i-[0-9a-f]{8,17}", get_str(document, "instanceId"))
        and re.fullmatch(r"[a-z]{2,4}(-[a-z]+)+-\d", region)
        and zone.startswith(region)
    ):
        return None
    return cloud_fields("aws", region, zone, get_str(document, "instanceType"), account)


def _gcp(context: Context) -> Steps:
    """Compute Engine, "About VM metadata", "Predefined metadata keys": each response has `Metadata-Flavor: Google`.

    Each key is read alone: a recursive response would include SSH keys and start-up scripts.
    """
    headers = (("Metadata-Flavor", "Google"),)
    zone_response = yield Request("/computeMetadata/v1/instance/zone", headers)
    zone = basename(zone_response)
    is_google = zone_response is not None and zone_response.headers.get("metadata-flavor") == "Google"
    if not is_google or not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone):
        return None
    machine_type = basename((yield Request("/computeMetadata/v1/instance/machine-type", headers)))
    account = ""
    if context.share_identity:
        account = basename((yield Request("/computeMetadata/v1/project/project-id", headers)))
    return cloud_fields("gcp", zone.rpartition("-")[0], zone, machine_type, account)


def _azure(_context: Context) -> Steps:
    """Azure, "Azure Instance Metadata Service": `Metadata: true`, `azEnvironment` in capitals of several kinds."""
    path = "/metadata/instance/compute?api-version=2021-02-01&format=json"
    compute = json_object((yield Request(path, (("Metadata", "true"),))))
    if not get_str(compute, "azEnvironment").lower().startswith("azure") or not get_str(compute, "location"):
        return None
    return cloud_fields("azure", *get_strs(compute, "location", "zone", "vmSize", "subscriptionId"))


def _hcloud(_context: Context) -> Steps:
    """Hetzner Cloud API, "Server Metadata": lines `key: value`, without the server's type."""
    response = yield Request("/hetzner/v1/metadata")
    lines = (line.partition(":") for line in text(response).splitlines() if not line.startswith((" ", "-")))
    values = {key: value.strip() for key, _, value in lines}
    if not values.get("instance-id", "").isdecimal() or not values.get("region"):
        return None
    return cloud_fields("hcloud", values["region"], values.get("availability-zone", ""))


def _upcloud(_context: Context) -> Steps:
    """UpCloud, "Metadata service": it names itself (DigitalOcean has the same path). It has no plan."""
    document = json_object((yield Request("/metadata/v1.json")))
    if get_str(document, "cloud_name") != "upcloud":
        return None
    return cloud_fields("upcloud", get_str(document, "region"))


def _digitalocean(_context: Context) -> Steps:
    """DigitalOcean, "Droplet Metadata API": a numeric `droplet_id`. It has no size."""
    document = json_object((yield Request("/metadata/v1.json")))
    if not isinstance(document.get("droplet_id"), int) or not re.fullmatch(r"[a-z]{3}\d", get_str(document, "region")):
        return None
    return cloud_fields("digitalocean", get_str(document, "region"))


def _vultr(_context: Context) -> Steps:
    """Vultr, "Instance metadata" (`/v1.json`): `instance-v2-id`; the API's region ids are the code in lower case."""
    document = json_object((yield Request("/v1.json")))
    region = get_str(document, "region", "regioncode")
    if not re.fullmatch(r"[0-9a-f-]{36}", get_str(document, "instance-v2-id")) or not region:
        return None
    return cloud_fields("vultr", region.lower())


def _oracle(_context: Context) -> Steps:
    """Oracle Cloud Infrastructure, "Getting Instance Metadata" (v2): `Authorization: Bearer Oracle`, OCIDs."""
    document = json_object((yield Request("/opc/v2/instance/", (("Authorization", "Bearer Oracle"),))))
    if not get_str(document, "id").startswith("ocid1.instance."):
        return None
    names = ("canonicalRegionName", "availabilityDomain", "shape", "tenantId")
    return cloud_fields("oracle", *get_strs(document, *names))


def _linode(_context: Context) -> Steps:
    """Akamai Cloud Computing, "Use the Metadata service API": a token first, JSON on request."""
    token = header_token((yield _token_request("/v1/token", "Metadata-Token-Expiry-Seconds")))
    if not token:
        return None
    headers = (("Metadata-Token", token), ("Accept", "application/json"))
    document = json_object((yield Request("/v1/instance", headers)))
    account = get_str(document, "account_euuid")
    if not isinstance(document.get("id"), int) or not account or not get_str(document, "host_uuid"):
        return None
    return cloud_fields("linode", get_str(document, "region"), "", get_str(document, "type"), account)


def _alicloud(_context: Context) -> Steps:
    """Alibaba Cloud ECS, "Instance metadata", "Instance identities": EC2's paths, other headers and names."""
    token = header_token((yield _token_request("/latest/api/token", "X-aliyun-ecs-metadata-token-ttl-seconds")))
    headers = (("X-aliyun-ecs-metadata-token", token),) if token else ()
    document = json_object((yield Request("/latest/dynamic/instance-identity/document", headers)))
    region, zone, kind, account = get_strs(document, "region-id", "zone-id", "instance-type", "owner-account-id")
    if not region or not account or not kind.startswith("ecs."):
        return None
    return cloud_fields("alicloud", region, zone, kind, account)


def _scaleway(_context: Context) -> Steps:
    """Scaleway, "Using the Instance metadata API". Older responses have the zone under `location`."""
    document = json_object((yield Request("/conf?format=json")))
    zone = get_str(document, "zone") or get_str(document, "location", "zone_id")
    instance_type = get_str(document, "commercial_type")
    if not zone or not instance_type or not re.fullmatch(r"[0-9a-f-]{36}", get_str(document, "id")):
        return None
    region = zone.rpartition("-")[0] if re.fullmatch(r"[a-z]{2}-[a-z]{3}-\d", zone) else ""
    return cloud_fields("scaleway", region, zone, instance_type, get_str(document, "organization"))


_OVH_RESOLVER = "213.186.33.99"


def _ovh(_context: Context) -> Steps:
    """OpenStack Nova, "Metadata"; OVHcloud guide "Changing DNS servers of a Public Cloud instance" (the resolver).

    OpenStack's responses do not name the provider. OVH is recognised by the resolver that it gives to its instances.
    Only regions of three zones name their zone (`eu-west-par-a`). Elsewhere it is `nova`, which means nothing.
    """
    network = json_object((yield Request("/openstack/latest/network_data.json")))
    services = network.get("services")
    if not isinstance(services, list) or not any(get_str(item, "address") == _OVH_RESOLVER for item in services):
        return None
    document = json_object((yield Request("/openstack/latest/meta_data.json")))
    zone = get_str(document, "availability_zone")
    zone = "" if zone == "nova" else zone
    region = zone.rpartition("-")[0] if re.fullmatch(r"[a-z]{2}(-[a-z]+)+-[a-z]", zone) else zone
    instance_type = text((yield Request("/latest/meta-data/instance-type")))
    return cloud_fields("ovh", region, zone, instance_type, get_str(document, "project_id"))


_EXOSCALE_ZONES = frozenset(
    {"ch-gva-2", "ch-dk-2", "de-fra-1", "de-muc-1", "at-vie-1", "at-vie-2", "bg-sof-1", "hr-zag-1"}
)


def _exoscale(context: Context) -> Steps:
    """Exoscale, "Compute: cloud-init" and egoscale's package `metadata`; zones as in its list of data centres.

    Every CloudStack has these paths. It is Exoscale when the zone is one of Exoscale's or the firmware says so.
    """
    zone = text((yield Request("/latest/meta-data/availability-zone")))
    if zone not in _EXOSCALE_ZONES and context.dmi_vendor != "exoscale":
        return None
    offering = text((yield Request("/latest/meta-data/service-offering")))
    if not validated_word(zone) or not validated_word(offering):
        return None
    return cloud_fields("exoscale", zone, zone, offering)


PROVIDERS = (
    Provider("gcp", _LINK_LOCAL, _gcp),
    Provider("azure", _LINK_LOCAL, _azure),
    Provider("hcloud", _LINK_LOCAL, _hcloud),
    Provider("upcloud", _LINK_LOCAL, _upcloud),
    Provider("digitalocean", _LINK_LOCAL, _digitalocean),
    Provider("vultr", _LINK_LOCAL, _vultr),
    Provider("oracle", _LINK_LOCAL, _oracle),
    Provider("linode", _LINK_LOCAL, _linode),
    Provider("alicloud", ("100.100.100.200", 80), _alicloud),
    Provider("scaleway", ("169.254.42.42", 80), _scaleway),
    Provider("aws", _LINK_LOCAL, _aws),
    Provider("ovh", _LINK_LOCAL, _ovh),
    Provider("exoscale", _LINK_LOCAL, _exoscale),
)
"""Where two recognise the same service, the earlier one is right: paths that others imitate come last."""


def _token_request(path: str, lifetime_header: str) -> Request:
    return Request(path, ((lifetime_header, "60"),), "PUT", _TOKEN_LIMIT_SHARE)
