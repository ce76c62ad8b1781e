"""The command line: Hydra meets the library here and nowhere else."""
