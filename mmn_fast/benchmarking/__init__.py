"""Measuring: medians of candidates that take turns, each in a process of its own; `mmn-fast bench`."""
