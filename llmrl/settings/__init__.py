"""Settings: their types, defaults and bounds, how they are written, and what is said about bad ones."""
