"""What `sentinel-uploader doctor` finds: one line a finding, with what to do."""
