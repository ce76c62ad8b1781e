"""Benchmarks: throughput of training, and what a hypergradient costs. Host code around what ``train`` compiles."""
