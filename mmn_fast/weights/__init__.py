"""A model's weights: where they are, what they are called, and how models are told apart."""
