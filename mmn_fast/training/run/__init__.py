"""A training run: options, loop, checkpoints, log and progress bar."""
