"""Kernels for CUDA devices as PyTorch operators, and tools to capture and time them."""
