"""`sentinel-uploader doctor`: runs all checks in order."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.local_uploader import SENTINEL_TARGET, default_target
from sentinel_uploader.app.factory import key_store, spool_dir
from sentinel_uploader.doctor import machine_checks
from sentinel_uploader.doctor.findings import Finding, failed, skipped


def run_checks(values: Mapping[str, Any], environ: Mapping[str, str], *, clock: Clock, put: bool) -> Iterator[Finding]:
    """Yield the findings in the order of the checks; `values` are the uploader's settings.

    Changes nothing, except that `put` creates one empty run at the API.
    """
    directory = spool_dir(values, environ)
    yield from machine_checks.check_spool(directory)
    yield machine_checks.check_disk(directory, values["spool_max"])
    yield machine_checks.check_descriptors(directory)
    yield from machine_checks.check_keys(key_store(values["keys"], environ), named=values["keys"] is not None)
    target = values["target"] or default_target(environ)
    if target != SENTINEL_TARGET:
        if "://" in target:
            raise UsageError(f"--target {target!r}: expected {SENTINEL_TARGET} or a directory")
        yield machine_checks.check_directory_target(os.path.abspath(target))
        yield skipped("clock", "no server is asked when runs are delivered to a directory")
        return
    try:
        # urllib3 and botocore come with the extra.
        from sentinel_uploader.backends.objectstore.by_scheme import REMOTE_STORES
        from sentinel_uploader.doctor.api_checks import check_backend
    except ImportError as error:
        text = f"the Sentinel API needs more than the base package ({error.name} is missing)"
        yield failed("api", text, "pip install 'sentinel-stream[uploader]'")
        return
    yield from check_backend(environ, clock=clock, put=put, run=machine_checks.open_run(directory, REMOTE_STORES))
