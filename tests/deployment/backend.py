"""A Sentinel API and its storage beside a composed uploader: `python -m deployment.backend TOKEN`.

At its end (SIGTERM) it prints, as JSON, what every run was finished with.
"""

import json
import signal
import sys

from fakes.keyring import Keyring
from fakes.process_harness import rows_of_objects
from fakes.s3 import S3Server
from fakes.sentinel_api import Run, SentinelServer

from sentinel_protocol.wire.sample import CSV_HEADER

API_PORT = 8080
S3_PORT = 8081


def rows(run: Run, s3: S3Server) -> list[str]:
    assert run.finish is not None
    if "data_csv" in run.finish:
        text: str = run.finish["data_csv"]
        return text.removeprefix(CSV_HEADER.decode()).splitlines()
    return rows_of_objects(s3.fetch(uri) or b"" for uri in run.finish["data_uris"])


def main(token: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    keyring = Keyring()
    s3 = S3Server(keyring, port=S3_PORT)
    api = SentinelServer(token=token, keyring=keyring, fetch=s3.fetch, port=API_PORT)
    with s3, api:
        signal.sigwait({signal.SIGTERM})
        finished = [run for run in api.runs.values() if run.finish is not None]
        found = {run.registration["tags"]["container"]: rows(run, s3) for run in finished}
        print(json.dumps({"runs": len(api.runs), "rows": found}))


if __name__ == "__main__":
    main(sys.argv[1])
