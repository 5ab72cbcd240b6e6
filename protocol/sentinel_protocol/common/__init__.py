"""What every package needs and no message names: errors, clock, paths, addresses, settings."""
