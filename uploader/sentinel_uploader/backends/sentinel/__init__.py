"""The conversation with the Sentinel API about runs: register, refresh credentials, finish."""
