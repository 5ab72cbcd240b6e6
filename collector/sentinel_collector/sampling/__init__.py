"""One row an interval from the sensors: rows, time stamps and what one row leaves to the next."""
