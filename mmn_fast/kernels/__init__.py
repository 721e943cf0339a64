"""The model's kernels: `reference` specifies every op, `cpu` and `gpu` implement the same signatures fast."""
