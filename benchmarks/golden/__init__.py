"""The golden cases: models and inputs that tests and benchmarks share, with the official code's outputs."""
