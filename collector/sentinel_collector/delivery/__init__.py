"""Delivery of rows: the queue, its overflow file, the connection to an uploader, and the recovery of orphaned files."""
