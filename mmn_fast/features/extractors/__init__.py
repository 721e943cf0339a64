"""From frames to clip features."""
