"""The file of a run with rows that are not acknowledged yet: format, header, reading and writing."""
