"""What the collector and the uploader share: samples, messages, sockets, and where things lie."""

__version__ = "0.1.0"
