"""Errors, clock, paths, addresses and settings, for all packages."""
