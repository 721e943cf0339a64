"""Backends: each has one file, which implements `base.Backend`, and one row in `registry.BACKENDS`."""
