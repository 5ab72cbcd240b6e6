"""The uploader: takes samples from collectors, makes them durable and delivers them."""
