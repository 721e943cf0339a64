"""Kernels behind one set of signatures: `reference` specifies, `native` and others are fast."""
