"""Text for a terminal: units, tables, sparklines."""
