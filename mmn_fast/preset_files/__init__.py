"""Files that describe a preset: the official programs' YAML, and YAML of one's own."""
