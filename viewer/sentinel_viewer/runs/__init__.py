"""Where runs are, what they are called, and what their descriptions say."""
