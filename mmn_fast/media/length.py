"""Whether a video is as long as its header says, found without decoding."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mmn_fast.media.container import av_module, choose_stream, open_container


def reaches(path: Path, time_s: float) -> bool:
    """Whether a file has a packet of its video stream that is shown later than `time_s` after its start."""
    av = av_module()
    container = open_container(path)
    try:
        stream = choose_stream(container, path)
        limit = (stream.start_time or 0) + time_s / float(stream.time_base)
        with suppress(av.FFmpegError):  # a container without an index is read from its start
            container.seek(int(limit), stream=stream)
        return any(packet.pts is not None and packet.pts > limit for packet in container.demux(stream))
    except (av.FFmpegError, IndexError):  # IndexError: see Source
        return False  # damaged on the way there: decoding will tell
    finally:
        container.close()
