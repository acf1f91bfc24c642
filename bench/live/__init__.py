"""Benchmarks over a whole mesh of real processes on this machine."""
