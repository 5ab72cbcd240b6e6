"""Measures the accuracy and the overhead of the collector and of its peer side by side; see README.md."""
