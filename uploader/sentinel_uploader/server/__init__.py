"""The sockets that collectors connect to: who may, how many, and what they send."""
