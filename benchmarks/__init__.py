"""Accuracy and overhead of the collector and of its peer, measured side by side; see README.md."""
