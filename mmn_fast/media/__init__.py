"""Video files: what they are, and frames at wanted times.

`probe` describes a file; `open_video` gives its frames. Decoding is PyAV's (extra `video`), whose wheels bring FFmpeg.
Presentation time stamps decide which frame is shown when. Only the named local file is opened.
"""

from mmn_fast.media.info import MediaInfo
from mmn_fast.media.reader import VideoReader, open_video, probe

__all__ = ["MediaInfo", "VideoReader", "open_video", "probe"]
