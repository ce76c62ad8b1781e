"""What to make of finished runs: statistics over seeds, and pictures."""
