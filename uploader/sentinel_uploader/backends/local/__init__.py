"""Runs that stay on this machine."""
