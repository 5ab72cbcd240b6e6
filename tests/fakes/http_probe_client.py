"""Asks an uploader's HTTP address as a probe or Prometheus does, and in ways in which none does."""

import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 30.0


class Answered(NamedTuple):
    """Status and body."""

    status: int
    text: str


class HttpProbeClient:
    """Asks one uploader, whose address its log tells."""

    def __init__(self, log: Path) -> None:
        found = re.findall(r"health and metrics ready url=http://(.+):(\d+)", log.read_text(encoding="utf-8"))
        self.host = found[-1][0]
        self.port = int(found[-1][1])

    def ask(self, path: str, method: str = "GET") -> Answered:
        """Make one request."""
        request = urllib.request.Request(f"http://{self.host}:{self.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return Answered(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answered(error.code, error.read().decode())

    def status(self, path: str) -> int:
        """Return the status alone."""
        return self.ask(path).status

    def samples(self) -> dict[str, float]:
        """Return every sample of `/metrics` as `name{label="value"}`, `sentinel_uploader_` left out."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.ask("/metrics").text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                name = sample.name.removeprefix("sentinel_uploader_")
                found[f"{name}{{{labels}}}" if labels else name] = sample.value
        return found

    def connect(self) -> socket.socket:
        """Open a connection and say nothing."""
        return socket.create_connection((self.host, self.port), timeout=TIMEOUT_S)

    def say(self, raw: bytes) -> bytes:
        """Send raw bytes and return all that comes back."""
        with self.connect() as connection:
            connection.sendall(raw)
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except ConnectionResetError:
                pass
            return received
