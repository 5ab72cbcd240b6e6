"""Requests of operators: status, retry, discard, drain."""
