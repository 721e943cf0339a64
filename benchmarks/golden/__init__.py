"""The golden cases: models and inputs that tests and benchmarks share, with what the official code computes of them."""
