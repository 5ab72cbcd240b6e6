"""Maps an `s3://` URI to the host and path of a request. Pure functions."""

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.http.client import Origin, parse_origin
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST_LABEL_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{1,40}")


class ObjectAddress(NamedTuple):
    """Bucket and key of an object. The key is not escaped."""

    bucket: str
    key: str


class S3Endpoint(NamedTuple):
    """A configured S3 server (MinIO, Ceph, R2, …), which is addressed by path."""

    origin: Origin
    prefix: str


def parse_uri(uri: str) -> ObjectAddress:
    """Split `s3://BUCKET/KEY`; raises `DeliveryError` for anything else."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    # The bucket becomes part of a host name: a URI from a server must not lead to another host.
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or not key:
        raise DeliveryError(f"PUT {uri!r}: not an s3://BUCKET/KEY address", retry_action=RetryAction.RETRY_SLOW)
    return ObjectAddress(bucket, key)


def configured_endpoint(environ: Mapping[str, str]) -> S3Endpoint | None:
    """Return the server in `AWS_ENDPOINT_URL_S3`, else `AWS_ENDPOINT_URL`; raises `UsageError` for an invalid URL."""
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        url = environ.get(variable, "")
        if url:
            try:
                return S3Endpoint(*parse_origin(url))
            except UsageError as error:
                raise UsageError(f"{variable}: {error}") from None
    return None


def is_region(name: str) -> bool:
    """Whether the name can be a region: it becomes part of a host name."""
    return _REGION.fullmatch(name) is not None


def object_location(address: ObjectAddress, region: str, endpoint: S3Endpoint | None) -> tuple[Origin, str]:
    """Return the server of the object, and the escaped path, which is signed and sent."""
    # As SigV4 requires: all but unreserved characters and `/`, in upper-case hexadecimal UTF-8.
    key = quote(address.key, safe="/~")
    if endpoint is not None:
        return endpoint.origin, f"{endpoint.prefix}/{address.bucket}/{key}"
    server = region_origin(region)
    # A bucket with a dot does not match the certificate's wildcard. Other names are no valid host names.
    if not _HOST_LABEL_BUCKET.fullmatch(address.bucket):
        return server, f"/{address.bucket}/{key}"
    return server._replace(host=f"{address.bucket}.{server.host}"), f"/{key}"


def region_origin(region: str) -> Origin:
    """Return the AWS server of a region."""
    return Origin("https", f"s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else ""), 443)


def bucket_location(bucket: str) -> tuple[Origin, str]:
    """Return where an unsigned HEAD returns the bucket's region."""
    if not _HOST_LABEL_BUCKET.fullmatch(bucket):
        return Origin("https", "s3.amazonaws.com", 443), f"/{bucket}"
    return Origin("https", f"{bucket}.s3.amazonaws.com", 443), "/"
