"""The findings of checks, and how they are shown."""

from collections.abc import Iterable
from enum import StrEnum
from functools import partial

import msgspec


class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    SKIPPED = "skipped"
    """Not checked; the text says why."""
    WARNING = "warning"
    """It works, but should be changed."""
    FAILED = "failed"
    """It does not work; `remedy` says what to do."""


class Finding(msgspec.Struct, frozen=True, rename={"severity": "verdict"}):
    """One line of the report."""

    severity: Severity
    subject: str
    text: str
    remedy: str = ""


ok = partial(Finding, Severity.OK)
skipped = partial(Finding, Severity.SKIPPED)
warning = partial(Finding, Severity.WARNING)
failed = partial(Finding, Severity.FAILED)


def report(findings: Iterable[Finding]) -> str:
    """Return the findings for people, a line each."""
    lines = []
    for finding in findings:
        what_to_do = f": {finding.remedy}" if finding.remedy else ""
        lines.append(f"{finding.severity:8}{finding.subject:13}{finding.text}{what_to_do}\n")
    return "".join(lines)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 when something does not work."""
    return int(any(finding.severity is Severity.FAILED for finding in findings))
