"""Reports of a run to the user: the rows as CSV, and the summary."""
