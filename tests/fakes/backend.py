"""The Sentinel API and the storage behind it, as one thing that runs are delivered to."""

import ssl
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from fakes.keyring import Keyring
from fakes.process_harness import rows_of_objects
from fakes.s3 import S3Server
from fakes.sentinel_api import Run, SentinelServer

TOKEN = "planted-token-6d1f"


class Backend:
    """Both servers; `with` starts and stops them. `environ` is what an uploader has to be given.

    `now` gives UNIX seconds by the clock of both; `ports` are the API's and storage's, where they have to be known
    before.
    """

    def __init__(
        self,
        *,
        upload_root: str = "s3://bucket/some prefix+@x",
        tls: ssl.SSLContext | None = None,
        now: Callable[[], float] | None = None,
        ports: tuple[int, int] = (0, 0),
    ) -> None:
        api_port, s3_port = ports
        self.keyring = Keyring()
        self.s3 = S3Server(self.keyring, tls=tls, port=s3_port)
        self.api = SentinelServer(
            token=TOKEN, keyring=self.keyring, upload_root=upload_root, fetch=self.s3.fetch, port=api_port
        )
        if now is not None:
            self.s3.now = self.api.now = now
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.s3)
        self._stack.enter_context(self.api)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def environ(self) -> dict[str, str]:
        """The variables that lead to both."""
        return {
            "SENTINEL_API_URL": self.api.url,
            "SENTINEL_API_TOKEN": TOKEN,
            "AWS_ENDPOINT_URL_S3": self.s3.url,
        }

    def only_run(self) -> Any:
        """Return the one `Run` that was registered."""
        (run,) = self.api.runs.values()
        return run

    def rows(self, run: Run) -> list[str]:
        """Return the CSV lines that `finish` delivered, in order: inline, or in the objects that it names.

        What is stored under the run's prefix has to be exactly what is named, and a repetition the same to the byte.
        """
        assert run.finish is not None, f"{run.run_id} has not ended"
        uris = run.finish.get("data_uris", [])
        assert [uri for uri in self.s3.objects() if uri.startswith(f"{run.prefix}/")] == uris
        assert all(len(set(self.s3.versions(uri))) == 1 for uri in uris)
        if "data_csv" in run.finish:
            header, *rows = run.finish["data_csv"].splitlines()
            assert header.startswith("timestamp,")
            return list(rows)
        return rows_of_objects(self.s3.objects()[uri] for uri in uris)
