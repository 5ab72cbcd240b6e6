"""Stores objects in S3: one signed PUT for each object, with the credentials of its run.

Without an SDK client: thousands of runs have their own credentials, and a client for each costs 10 ms and 0.3 MiB.
"""

from collections.abc import Callable, Mapping

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.http.client import HttpClient, HttpResponse, Origin
from sentinel_uploader.backends.objectstore.s3.address import (
    ObjectAddress,
    bucket_location,
    configured_endpoint,
    is_region,
    object_location,
    parse_uri,
    region_origin,
)
from sentinel_uploader.backends.objectstore.s3.errors import S3ErrorBody, parse_error, to_exception
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import StoreProbe, object_uri
from sentinel_uploader.runs.types import Credentials

FALLBACK_REGION = "us-east-1"
AUTHORITY_VARIABLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE")
_REMEDY = "check AWS_ENDPOINT_URL_S3, the network, HTTPS_PROXY and AWS_CA_BUNDLE"


def open_store(environ: Mapping[str, str], clock: Clock, new_client: Callable[..., HttpClient]) -> "S3Store":
    """Return the store with a client of its own."""
    return S3Store(environ=environ, clock=clock, client=new_client(authority_variables=AUTHORITY_VARIABLES))


class S3Store:
    """An `ObjectStore` for `s3://BUCKET/KEY`; safe for several threads.

    `AWS_ENDPOINT_URL_S3` (else `AWS_ENDPOINT_URL`) names a server other than AWS. Raises `UsageError` for unusable
    addresses, proxies and files in the environment, and when botocore is not installed.
    """

    def __init__(self, *, environ: Mapping[str, str], clock: Clock, client: HttpClient | None = None) -> None:
        self._clock = clock
        self._endpoint = configured_endpoint(environ)
        self._default_region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or ""
        self._client = client or HttpClient(environ=environ, clock=clock, authority_variables=AUTHORITY_VARIABLES)
        # Several threads use these two: one operation at a time, each of which is atomic.
        self._bucket_regions: dict[str, str] = {}
        self._clock_offset_s: dict[str, float] = {}
        self._signed_headers = _import_signer()

    def backoff_key(self, uri: str) -> str:
        """Return `s3://BUCKET`: each bucket fails and throttles on its own."""
        return f"s3://{parse_uri(uri).bucket}"

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:
        """Store the object; idempotent; raises `DeliveryError`.

        One attempt, repeated at most once each for a wrong region and a wrong clock: the response has the right ones.
        """
        address = parse_uri(uri)
        call = f"PUT {uri}"
        if credentials is None:
            raise DeliveryError(
                f"{call}: there are no credentials for the bucket", retry_action=RetryAction.REFRESH_CREDENTIALS
            )
        region = self._region(address.bucket, credentials)
        can_retry_region = can_retry_clock = True
        while True:
            answer = self._attempt(call, address, region, body, credentials)
            if answer.is_success:
                return
            fault = parse_error(answer)
            if can_retry_region and _is_wrong_region(fault, region):
                can_retry_region = False
                region = fault.region
                self._bucket_regions[address.bucket] = region
            elif can_retry_clock and self._learn_clock_offset(address.bucket, fault, answer):
                can_retry_clock = False
            else:
                secrets = (credentials.secret_key, credentials.session_token, credentials.access_key)
                raise to_exception(call, answer, fault, secrets=secrets, now=self._clock.now())

    def probe(self, uri_prefix: str | None, region: str | None) -> list[StoreProbe]:
        """Send one HEAD request to the server of the objects: tries its name, port, certificate and the proxy."""
        region = region or self._default_region
        if region and not is_region(region):
            return [StoreProbe("", is_certain=True, error=f"{region!r} is not a region", remedy=_REMEDY)]
        is_certain = bool(uri_prefix or self._endpoint)
        origin, path = self._probed_location(uri_prefix, region)
        try:
            answer = self._client.request("HEAD", "HEAD", origin, path, headers={})
        except DeliveryError as error:
            return [StoreProbe(origin.url, is_certain, error=str(error), remedy=_REMEDY)]
        return [StoreProbe(origin.url, is_certain, server_time=answer.date())]

    def close(self) -> None:
        """Close the connections; calls in flight fail."""
        self._client.close()

    def _probed_location(self, uri_prefix: str | None, region: str) -> tuple[Origin, str]:
        if self._endpoint is not None:
            return self._endpoint.origin, f"{self._endpoint.prefix}/"
        if uri_prefix is None:
            return region_origin(region or FALLBACK_REGION), "/"
        address = parse_uri(object_uri(uri_prefix, 1))
        if not region:
            return bucket_location(address.bucket)
        return object_location(address, region, None)[0], "/"

    def _attempt(
        self, call: str, address: ObjectAddress, region: str, body: bytes, credentials: Credentials
    ) -> HttpResponse:
        origin, path = object_location(address, region, self._endpoint)
        headers = self._signed_headers(
            "PUT",
            origin.url + path,
            headers={"Host": origin.netloc, "Content-Type": "application/gzip"},
            body=body,
            credentials=credentials,
            region=region,
            now=self._clock.now() + self._clock_offset_s.get(address.bucket, 0.0),
        )
        return self._client.request(call, "PUT", origin, path, headers=headers, body=body)

    def _region(self, bucket: str, credentials: Credentials) -> str:
        """Return the region that storage has told, else the API, the configuration, or the response to a HEAD."""
        region = self._bucket_regions.get(bucket) or credentials.region or self._default_region
        if not region:
            region = FALLBACK_REGION if self._endpoint else self._lookup_region(bucket)
        if not is_region(region):
            raise DeliveryError(f"s3://{bucket}: {region!r} is not a region", retry_action=RetryAction.RETRY_SLOW)
        return region

    def _lookup_region(self, bucket: str) -> str:
        origin, path = bucket_location(bucket)
        answer = self._client.request(f"HEAD s3://{bucket}", "HEAD", origin, path, headers={})
        region = answer.headers.get("x-amz-bucket-region") or ""
        if not is_region(region):
            # Not remembered: the response to the PUT says more.
            return FALLBACK_REGION
        self._bucket_regions[bucket] = region
        return region

    def _learn_clock_offset(self, bucket: str, fault: S3ErrorBody, answer: HttpResponse) -> bool:
        server_now = answer.date()
        if fault.code != "RequestTimeTooSkewed" or server_now is None:
            return False
        self._clock_offset_s[bucket] = server_now - self._clock.now()
        return True


def _is_wrong_region(fault: S3ErrorBody, region: str) -> bool:
    is_wrong_region = fault.code in {"AuthorizationHeaderMalformed", "PermanentRedirect"} or fault.status == 301
    return is_wrong_region and fault.region != region and is_region(fault.region)


def _import_signer() -> Callable[..., dict[str, str]]:
    try:
        from sentinel_uploader.backends.objectstore.s3.sigv4 import signed_headers
    except ImportError as error:
        raise UsageError(
            f"storing objects in S3 needs {error.name}: install it with pip install 'sentinel-stream[uploader]'"
        ) from error
    return signed_headers
