"""Finds the cloud of the machine: by DMI, then by the metadata services."""
