"""Kernels for CPUs: the operators of the compiled extension, and the text encoder over them."""
