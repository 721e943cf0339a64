"""The demonstration: a procedural world in which grounding is well defined and visible."""
