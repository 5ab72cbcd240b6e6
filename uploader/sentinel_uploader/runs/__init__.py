"""A run's states, its upload schedule, and the ports of a backend."""
