"""What is due for each run, when it may be tried, and doing it."""
