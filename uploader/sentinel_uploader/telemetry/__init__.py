"""Counters, health, metrics and log lines of a running uploader, and its HTTP server."""
