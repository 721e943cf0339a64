"""The ops, once per implementation and under the same names: `reference` (plain PyTorch), `native` (C++ and CUDA)."""
