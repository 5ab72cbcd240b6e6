"""The runs in a browser."""
