"""Commands that start from video files."""
