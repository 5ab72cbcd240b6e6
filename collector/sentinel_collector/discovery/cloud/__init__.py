"""Which cloud a machine belongs to: DMI, then the metadata services."""
