"""Kernels behind one set of signatures: `reference` specifies them, `cpu` and `gpu` are fast."""
