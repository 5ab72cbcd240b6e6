"""A run that only its uploader knows yet, or knows more of: found by what people call it."""

from collections.abc import Sequence

import msgspec

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_viewer.live.uploaders import LiveRun
from sentinel_viewer.runs.naming import FoundRun, Library


class UploaderPlace:
    """A `RunPlace` for a run whose rows are still at its uploader, or in storage that this user cannot read."""

    uri = "at the uploader"
    parallel = 1

    def versions(self) -> dict[str, str]:
        """Nothing is here."""
        return {}

    def read_description(self, name: str) -> bytes | None:  # noqa: ARG002 -- the protocol's
        """Nothing is here."""
        return None

    def list_objects(self, name: str) -> dict[str, int]:  # noqa: ARG002 -- the protocol's
        """Nothing is here."""
        return {}

    def read_object(self, name: str, object_name: str) -> bytes:
        """Never called: there are no objects."""
        raise NotImplementedError(name, object_name)

    def locate(self, name: str) -> str:  # noqa: ARG002 -- the protocol's
        """Return where the rows are."""
        return self.uri

    def delete_run(self, name: str) -> None:
        """Never called: `sentinel-uploader discard` does that."""
        raise NotImplementedError(name)


def named_live(runs: Sequence[LiveRun], word: str) -> LiveRun | None:
    """Return the run with this id, this job (its newest), or the only one with this part of an id."""
    exact = [one for one in runs if one.run.run_id == word] or [one for one in runs if word and one.run.job == word]
    if exact:
        return max(exact, key=lambda one: one.run.started_at or 0.0)
    parts = [one for one in runs if word and word in one.run.run_id]
    return parts[0] if len(parts) == 1 else None


def found_live(one: LiveRun, library: Library) -> FoundRun:
    """Return a live run with what of it is delivered and can be read here."""
    if one.objects:
        try:
            delivered = library.find(one.objects)[0]
        except SentinelStreamError:
            return FoundRun(UploaderPlace(), one.run)
        run = msgspec.structs.replace(one.run, name=delivered.run.name, objects=delivered.run.objects)
        return FoundRun(delivered.place, run)
    return FoundRun(UploaderPlace(), one.run)
