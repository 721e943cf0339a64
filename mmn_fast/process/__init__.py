"""What concerns the running process: its environment, cores and forks, values made once, and PyTorch's settings."""
