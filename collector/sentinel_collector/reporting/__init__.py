"""What is told of a run: the rows as CSV and the summary."""
