"""Commands about libraries of videos: index, search."""
