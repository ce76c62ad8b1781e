"""Pure array mathematics."""
