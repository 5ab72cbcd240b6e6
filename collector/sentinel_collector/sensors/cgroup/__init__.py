"""Control groups: the run's own, and the container's limits."""
