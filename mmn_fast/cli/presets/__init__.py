"""The commands about presets: list, show, new."""
