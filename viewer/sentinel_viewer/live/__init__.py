"""Runs that are being recorded now, as far as their uploader tells."""
