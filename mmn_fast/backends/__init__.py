"""Backends: one file each behind `base.Backend`, one row each in `registry.BACKENDS`."""
