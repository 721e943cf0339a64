"""The running process: its environment, cores and forks, values made once, and PyTorch's settings."""
