"""Benchmarks: ours beside its peers in one run. Run one as `python -m benchmarks.<name>`."""
