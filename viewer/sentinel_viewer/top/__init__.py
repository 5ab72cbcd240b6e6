"""All live runs in a terminal."""
