"""Finds the facts of the machine: host and cloud."""
