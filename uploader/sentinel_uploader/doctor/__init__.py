"""`sentinel-uploader doctor`: checks, one line for each finding, with what to do."""
