"""Where runs are delivered: the Sentinel API, object stores, and the machine itself."""
