"""Finds the provider in the firmware's strings (DMI), so that only that one is asked.

The strings come from the table of cloud-init's `tools/ds-identify` and its data sources (AliYun, Akamai, Azure,
DigitalOcean, Ec2, Exoscale, GCE, Hetzner, OpenStack, Oracle, Scaleway, UpCloud, Vultr), and from Amazon's page
"Identify EC2 instances" for the BIOS version of Xen instances.
"""

from sentinel_collector.procfs import read_file

DMI_DIR = "/sys/class/dmi/id"
_MAX_VALUE_BYTES = 256

_VENDOR_BY_SYS_VENDOR = {
    "Amazon EC2": "aws",
    "Hetzner": "hcloud",
    "UpCloud": "upcloud",
    "Vultr": "vultr",
    "DigitalOcean": "digitalocean",
    "Scaleway": "scaleway",
    "Akamai": "linode",
    "Linode": "linode",
}
_VENDOR_BY_PRODUCT_NAME = {
    # The vendor is not enough: "Google" also makes laptops.
    "Google Compute Engine": "gcp",
    "Alibaba Cloud ECS": "alicloud",
    # Every OpenStack has these. Of the providers here only OVH uses it, and its metadata service decides.
    "OpenStack Nova": "ovh",
    "OpenStack Compute": "ovh",
}
_VENDOR_BY_CHASSIS_ASSET_TAG = {
    # The vendor "Microsoft Corporation" is on every Hyper-V guest, this tag on Azure alone.
    "7783-7084-3265-9085-8269-3286-77": "azure",
    "OracleCloud.com": "oracle",
}


def vendor_from_dmi(dmi_dir: str = DMI_DIR) -> str | None:
    """Return the vendor id that the firmware names; `None` when it names none or cannot be read. Never raises."""
    product_name = _read(dmi_dir, "product_name")
    vendor = (
        _VENDOR_BY_SYS_VENDOR.get(_read(dmi_dir, "sys_vendor"))
        or _VENDOR_BY_PRODUCT_NAME.get(product_name)
        or _VENDOR_BY_CHASSIS_ASSET_TAG.get(_read(dmi_dir, "chassis_asset_tag"))
    )
    if vendor is None and product_name.startswith("Exoscale"):
        return "exoscale"
    if vendor is None and _read(dmi_dir, "bios_version").endswith(".amazon"):
        return "aws"
    return vendor


def _read(dmi_dir: str, name: str) -> str:
    try:
        return read_file(f"{dmi_dir}/{name}", _MAX_VALUE_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
