"""Settings: how one is declared, and where its value comes from."""
