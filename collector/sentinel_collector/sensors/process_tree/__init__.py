"""The tracked process tree: CPU, memory and bytes of all its members."""
