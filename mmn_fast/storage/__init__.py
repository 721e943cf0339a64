"""Files on disk: written whole, summed, read with suspicion, and cleaned up after killed processes."""
