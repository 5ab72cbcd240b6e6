"""A load generator: many collectors from few processes, over real sockets, against one real uploader."""
