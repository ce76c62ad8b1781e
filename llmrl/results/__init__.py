"""What one does with a finished run: evaluate, map its trust, export its policies, film it, report on it."""
