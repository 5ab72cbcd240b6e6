"""Looks at runs: lists them, shows them, writes reports, compares. It never changes one; only `rm` deletes."""
