"""Reads the contract's fields from responses of metadata services, which may be hostile."""

import re
from typing import Any

import msgspec

from sentinel_collector.discovery.cloud.http import MetadataResponse

Fields = dict[str, str]
ACCOUNT_FIELD = "cloud_account_id"

_PLAIN = re.compile(r"[A-Za-z0-9._/:+-]+")
_MAX_CHARS = 64
_MAX_ACCOUNT_CHARS = 128
"""An OCID is some 80 characters long."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,2048}")


def cloud_fields(vendor_id: str, region: str, zone: str = "", instance_type: str = "", account: str = "") -> Fields:
    """Return the values under the contract's names, without those that are empty or no short plain word."""
    fields = {
        "cloud_vendor_id": vendor_id,
        "cloud_region_id": validated_word(region),
        "cloud_zone_id": validated_word(zone),
        "cloud_instance_type": validated_word(instance_type),
        ACCOUNT_FIELD: validated_word(account, _MAX_ACCOUNT_CHARS),
    }
    return {name: value for name, value in fields.items() if value}


def validated_word(value: str, max_chars: int = _MAX_CHARS) -> str:
    """Return the value without surrounding space; empty when it is too long or has other characters."""
    stripped = value.strip()
    return stripped if len(stripped) <= max_chars and _PLAIN.fullmatch(stripped) else ""


def text(response: MetadataResponse | None) -> str:
    """Return the body without surrounding space, empty without a response."""
    return response.body.decode("ascii", "replace").strip() if response else ""


def header_token(response: MetadataResponse | None) -> str:
    """Return the body as a token; empty when it cannot be a header's value."""
    token = text(response)
    return token if _TOKEN.fullmatch(token) else ""


def json_object(response: MetadataResponse | None) -> dict[str, Any]:
    """Return the body's JSON object; empty for anything else."""
    try:
        value = msgspec.json.decode(response.body) if response else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def basename(response: MetadataResponse | None) -> str:
    """`projects/123/zones/europe-west1-b` → `europe-west1-b`."""
    return text(response).rpartition("/")[2]


def get_str(document: object, *keys: str) -> str:
    """Return the string at the path of keys; empty when it is missing or no string."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, str) else ""


def get_strs(document: object, *keys: str) -> list[str]:
    """Return the string of each key; empty ones for those that are missing or no string."""
    return [get_str(document, key) for key in keys]
