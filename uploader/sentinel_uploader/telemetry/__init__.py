"""What the uploader tells whoever watches it: health and metrics over HTTP."""
