"""The tracked process tree: CPU time, memory and bytes of all its processes."""
