"""Rows and runs on disk until they are delivered."""
