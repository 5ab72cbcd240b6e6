"""The protocol between collector and uploader: samples, messages, keys and the options of the sockets."""
