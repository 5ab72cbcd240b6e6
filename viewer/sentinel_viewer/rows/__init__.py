"""A run's rows: reading them, statistics, downsampling."""
