"""The Sentinel API over HTTP: register, refresh credentials, finish."""
