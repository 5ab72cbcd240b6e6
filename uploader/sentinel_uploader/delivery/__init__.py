"""Scheduling and executing the steps that deliver a run."""
