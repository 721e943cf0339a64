"""The content of an export directory: its manifest, its plans' sidecars, its stages. Needs no torch."""
