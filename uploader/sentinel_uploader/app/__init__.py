"""The uploader put together: its settings, and the service that runs it."""
