"""What becomes of rows: the queue, the file behind it, the connection to an uploader, and what earlier runs left."""
