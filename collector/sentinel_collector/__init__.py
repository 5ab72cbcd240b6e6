"""The collector: samples what a host or a process tree uses and publishes it."""
