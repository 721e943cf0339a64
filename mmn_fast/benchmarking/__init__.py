"""Measures candidates that take turns, each in its own process, and reports medians; `mmn-fast bench`."""
