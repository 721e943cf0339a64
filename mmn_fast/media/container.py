"""Opens a video file with FFmpeg, by way of PyAV: one local file, known containers, no other names."""

from __future__ import annotations

import os
import stat
from importlib import import_module
from pathlib import Path
from typing import Any

from mmn_fast.errors import InputError

INSTALL = "reading videos needs PyAV (pip install mmn_fast[video])"

_KINDS = "MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV, Ogg or MXF"
_DEMUXERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "ivf", "obu", "flv", "asf"),
    *("ogg", "mxf", "dv", "nut", "yuv4mpegpipe"),
)
"""FFmpeg's names of the containers that are read. None of them opens a second file.

Playlists and lists of files (hls, dash, concat, sdp), images, sound and raw data are not among them.
"""
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(_DEMUXERS),
    "enable_drefs": "0",  # MOV's references to other files
    "max_pixels": str(2**26),  # 8192 x 8192; a header of some bytes can ask for 2^31 pixels
}
_READ_S = 60.0
"""Longest wait for the file system, for example for a network mount that no longer answers."""
_IMAGE_BRANDS = frozenset(("avif", "avis", "heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1", "jpeg"))
"""Brands of ISO base media files that are images (HEIF, AVIF), not videos."""
_NO_PICTURES = 1 << 10 | 1 << 11
"""FFmpeg's dispositions of streams that are cover pictures or thumbnails."""


def av_module() -> Any:
    """The module `av`, PyAV.

    Raises:
        InputError: PyAV is not installed.
    """
    try:
        return import_module("av")
    except ImportError as error:
        raise InputError(f"{INSTALL}: {error}") from error


def open_container(path: Path) -> Any:
    """Open a video file; return PyAV's `InputContainer`, which the caller closes.

    Args:
        path: a local file.

    Raises:
        InputError: no such file, not a regular file, empty, or not a video container that FFmpeg can read.
    """
    av = av_module()
    _check_file(path)
    try:
        # "file:" keeps FFmpeg from taking a name such as "http:x" or "concat:a|b" for an address.
        return av.open(
            f"file:{os.path.abspath(path)}",
            mode="r",
            options=_OPTIONS,
            metadata_errors="replace",
            timeout=_READ_S,
        )
    except av.FFmpegError as error:
        if isinstance(error, av.ArgumentError):  # FFmpeg's answer to a container that the list leaves out
            raise InputError(f"{path}: expected a video file ({_KINDS}), got a file of another kind") from error
        raise InputError(f"{path}: expected a video file ({_KINDS}), got one that cannot be read: {why(error)}") from (
            error
        )
    except (ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: expected a video file, got one that cannot be read: {error}") from error


def why(error: Any) -> str:
    """FFmpeg's reason for an error, without the file's name."""
    return str(getattr(error, "strerror", None) or error)


def _check_file(path: Path) -> None:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a video file: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a device or pipe"
        raise InputError(f"{path}: expected a video file, got {kind}")
    if found.st_size == 0:
        raise InputError(f"{path}: expected a video file, got an empty file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: expected a video file: Permission denied")


def choose_stream(container: Any, path: Path) -> Any:
    """Choose the video stream of an open file: the first default one, else the first; ignore all other streams.

    Args:
        container: PyAV's `InputContainer`.
        path: the file's name for messages.

    Raises:
        InputError: no video stream, only a cover picture, an image, an encrypted stream, or no decoder for it.
    """
    videos = container.streams.video
    wanted = [stream for stream in videos if not int(stream.disposition) & _NO_PICTURES]
    if not wanted:
        instead = "only a cover picture" if videos else "sound only" if container.streams.audio else "no video stream"
        raise InputError(f"{path}: expected a video, got {instead}")
    if container.metadata.get("major_brand", "").strip() in _IMAGE_BRANDS:
        raise InputError(f"{path}: expected a video, got an image")
    stream = min(wanted, key=lambda one: (not int(one.disposition) & 1, one.index))
    if stream.codec_context is None:
        raise InputError(f"{path}: expected a video, got one in a codec that this FFmpeg cannot decode")
    if _is_encrypted(stream):
        raise InputError(f"{path}: expected a video, got an encrypted one")
    discard = import_module("av.stream").Discard.all
    for other in container.streams:
        if other.index != stream.index:
            other.discard = discard
    return stream


def _is_encrypted(stream: Any) -> bool:
    if "enc_key_id" in stream.metadata:  # Matroska
        return True
    try:
        return bool(stream.codec_context.codec_tag == "encv")  # ISO base media (Common Encryption)
    except UnicodeDecodeError:
        return False
