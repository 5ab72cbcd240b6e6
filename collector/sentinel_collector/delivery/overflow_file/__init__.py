"""The file of a run whose rows wait for an uploader: its records, its header, reading and writing."""
