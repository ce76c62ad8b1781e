"""Many runs: comparisons, sweeps, figures, and tables of answers made ahead of training."""
