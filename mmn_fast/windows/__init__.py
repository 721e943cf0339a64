"""Videos longer than those of the training: cut into overlapping windows, whose moments are merged.

To the model a window is a video of its own.
"""

from mmn_fast.windows.cuts import Piece, Window, Windows, checked_windows, cut, cut_video

__all__ = ["Piece", "Window", "Windows", "checked_windows", "cut", "cut_video"]
