"""Takes a trained model elsewhere: ONNX graphs, TensorRT plans and a Triton model repository."""
