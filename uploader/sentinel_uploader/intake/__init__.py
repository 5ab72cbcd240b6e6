"""What collectors send: validated, written to the spool and acknowledged."""
