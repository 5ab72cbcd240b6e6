"""Messages of collectors: validated, written to the spool and acknowledged."""
