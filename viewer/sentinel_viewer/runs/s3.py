"""Runs in a bucket, with the usual AWS credentials (variables, profiles, roles) and `AWS_ENDPOINT_URL`."""

from typing import Any

from sentinel_protocol.common.errors import UsageError
from sentinel_viewer.errors import ReadError, missing_extra
from sentinel_viewer.runs.places import DESCRIPTION, in_order, is_object_name

SCHEME = "s3://"
_TIMEOUT_S = 20
_TRIES = 4
_DELETE_BATCH = 1000  # the most keys that DeleteObjects takes


class S3Place:
    """A `RunPlace` whose runs are the prefixes below `uri` that hold objects; listed once, when first asked."""

    parallel = 16

    def __init__(self, uri: str) -> None:
        """`uri` is `s3://BUCKET[/PREFIX]`; raises `UsageError` when it is not, or botocore is missing."""
        bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"{uri!r} names no bucket: s3://BUCKET/PREFIX")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"{SCHEME}{bucket}/{self._prefix}".rstrip("/")
        self._client = _client()
        self._runs: dict[str, dict[str, tuple[int, str]]] | None = None

    def versions(self) -> dict[str, str]:
        """The version is the description's entity tag."""
        return {name: files.get(DESCRIPTION, (0, ""))[1] for name, files in self._listed().items()}

    def read_description(self, name: str) -> bytes | None:
        """Get `run.json`; runs of the Sentinel API have none."""
        if DESCRIPTION not in self._listed().get(name, {}):
            return None
        return self.read_object(name, DESCRIPTION)

    def list_objects(self, name: str) -> dict[str, int]:
        """Return what the listing has."""
        files = self._listed().get(name, {})
        return in_order({file: size for file, (size, _) in files.items() if is_object_name(file)})

    def read_object(self, name: str, object_name: str) -> bytes:
        """Get one object."""
        key = self._key(name, object_name)

        def get() -> bytes:
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            return body

        return self._called(get, f"{SCHEME}{self._bucket}/{key}")  # type: ignore[no-any-return]  # what `get` returns

    def locate(self, name: str) -> str:
        """Return the run's URI."""
        return f"{SCHEME}{self._bucket}/{self._key(name, '')}".rstrip("/")

    def delete_run(self, name: str) -> None:
        """Delete the run's description and objects."""
        keys = [{"Key": self._key(name, file)} for file in self._listed().get(name, {})]
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = {"Objects": keys[start : start + _DELETE_BATCH], "Quiet": True}
            answer = self._called(
                lambda batch=batch: self._client.delete_objects(Bucket=self._bucket, Delete=batch), self.locate(name)
            )
            for failed in answer.get("Errors", [])[:1]:
                raise ReadError(f"cannot delete {failed.get('Key')}: {failed.get('Message')}")
        self._runs = None

    def _key(self, name: str, file: str) -> str:
        return f"{self._prefix}{name}/{file}" if name else f"{self._prefix}{file}"

    def _listed(self) -> dict[str, dict[str, tuple[int, str]]]:
        if self._runs is None:
            self._runs = self._called(self._list, self.uri)
        return self._runs

    def _list(self) -> dict[str, dict[str, tuple[int, str]]]:
        runs: dict[str, dict[str, tuple[int, str]]] = {}
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        for page in pages:
            for entry in page.get("Contents", ()):
                name, _, file = entry["Key"].removeprefix(self._prefix).rpartition("/")
                if file == DESCRIPTION or is_object_name(file):
                    runs.setdefault(name, {})[file] = (entry["Size"], entry["ETag"].strip('"'))
        return runs

    def _called(self, call: Any, what: str) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            return call()
        except NoCredentialsError as error:
            text = f"no AWS credentials for {what}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise UsageError(text) from error
        except (BotoCoreError, ClientError) as error:
            raise ReadError(f"cannot read {what}: {error}") from error


def _client() -> Any:
    try:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise missing_extra("s3://") from None
    session = botocore.session.get_session()
    config = Config(
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        retries={"max_attempts": _TRIES, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        # A region is needed to sign; a bucket elsewhere answers with its own, and botocore follows.
        region = session.get_config_variable("region") or "us-east-1"
        return session.create_client("s3", region_name=region, config=config)
    except BotoCoreError as error:
        raise UsageError(f"cannot use the AWS configuration: {error}") from error
