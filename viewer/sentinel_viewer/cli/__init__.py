"""The commands of `sentinel-stream`."""
