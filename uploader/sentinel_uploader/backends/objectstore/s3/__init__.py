"""The object store for `s3://` URIs: Amazon S3 and servers with the same API."""
