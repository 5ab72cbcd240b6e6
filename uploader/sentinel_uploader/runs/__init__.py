"""A run: its states, what it needs next, and what its destination must offer."""
