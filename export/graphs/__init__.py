"""The three seams as ONNX graphs, made node by node from a model's NumPy weights, without PyTorch."""

# For all precisions but bf16: the newest operator set that TensorRT 10.0 reads (its docs/operators.md: 9 to 20).
# TensorRT 11 reads up to 25.
OPSET = 20
