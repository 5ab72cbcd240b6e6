"""The whole system as Linux shows it in /proc and /sys."""
