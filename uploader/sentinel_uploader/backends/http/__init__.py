"""HTTP calls with a deadline, through the proxies and certificates of the environment."""
