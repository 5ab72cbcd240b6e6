"""HTTP requests with a deadline, through the environment's proxies and certificate authorities."""
