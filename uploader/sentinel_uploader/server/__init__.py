"""The sockets that collectors connect to: authentication, limits of connections, and receiving."""
