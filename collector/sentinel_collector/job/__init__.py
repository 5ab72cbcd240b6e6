"""The wrapped job: its start, its signals and the wait for its end."""
