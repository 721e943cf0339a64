"""Exports a trained model: ONNX graphs, TensorRT plans and a Triton model repository."""
