"""Breaks the installed commands by a seeded schedule, and then counts rows (`python -m chaos --help`)."""
