"""A model's weights: their files, their official names, and the fingerprint that tells models apart."""
