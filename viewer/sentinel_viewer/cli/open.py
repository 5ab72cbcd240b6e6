"""`sentinel-stream open`."""

from sentinel_viewer.cli.report import open_run as run

__all__ = ["run"]
