"""What operators ask of the uploader: status, retry, discard, drain."""
