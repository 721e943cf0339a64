"""Evaluation: annotation files in, recall tables out. NumPy only; the engine does the rest."""
