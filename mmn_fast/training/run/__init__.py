"""A training run: its options, its loop, its checkpoints and what it says meanwhile."""
