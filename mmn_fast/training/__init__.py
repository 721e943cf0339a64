"""Training: losses, data, the forward and backward pass over the sparse map, and the loop."""
