"""Kernels for CUDA devices, as PyTorch operators, and what their captures and timings need."""
