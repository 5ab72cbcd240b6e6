"""Where the runs' objects go."""
