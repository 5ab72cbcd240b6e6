"""`sentinel-stream web` as a process."""

import re
from pathlib import Path

from fakes.process_harness import BIN, Home, wait_until

STREAM = str(BIN / "sentinel-stream")
_ADDRESS = re.compile(r"http://\S+")


class ViewerServer:
    """Serves a home's runs at `address`, which holds the token where there is one."""

    def __init__(self, home: Home, *words: str, env: dict[str, str] | None = None) -> None:
        log = Path(home.directory) / "web.log"
        with log.open("w") as file:
            command = [STREAM, "web", "--port", "0", *words]
            self.process = home.start(*command, env=env, stdout=file, stderr=file)
        found = wait_until(lambda: _ADDRESS.search(log.read_text()), "the server has said where it listens")
        self.address = str(found[0])

    def url(self, path: str) -> str:
        """Return the address of a path."""
        return self.address.partition("?")[0].rstrip("/") + path
