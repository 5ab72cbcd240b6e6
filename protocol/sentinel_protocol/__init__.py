"""Code that the collector and the uploader share: samples, messages, socket options, settings and paths."""

__version__ = "0.1.0"
