"""Small helpers with no knowledge of runs."""
