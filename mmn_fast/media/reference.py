"""Reads from a compressed packet's headers whether other frames may refer to its frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator

_START = b"\x00\x00\x01"
_Rule = Callable[[bytes, int], "bool | None"]


class FreeFrames:
    """Tells packets whose frame no other frame refers to, for one stream.

    H.264, H.265 with one temporal layer and MPEG-1, -2 and -4 say it in their headers. FFmpeg's decoders leave out the
    same frames (skip_frame=nonref), but do not say which packets those were.

    Attributes:
        known: whether the codec says it.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        """Read the stream's own header.

        Args:
            codec: FFmpeg's name.
            extradata: the decoder's configuration from the container.
        """
        extra = extradata or b""
        # With several temporal layers, a frame of a higher layer may refer to a "non-reference" frame.
        layers = (extra[21] >> 3) & 7 if len(extra) > 22 and extra[0] == 1 else 0
        self._rule = None if codec == "hevc" and layers != 1 else _RULES.get(codec)
        self.known = self._rule is not None
        self._prefix = 0  # bytes of a unit's length; 0: units begin with a start code
        if codec == "h264" and len(extra) > 6 and extra[0] == 1:
            self._prefix = (extra[4] & 3) + 1
        elif codec == "hevc" and self.known:
            self._prefix = (extra[21] & 3) + 1

    def holds(self, data: bytes) -> bool:
        """Whether all pictures of a packet are free; False for a packet without any picture."""
        assert self._rule is not None
        units = _with_lengths(data, self._prefix) if self._prefix else _with_start_codes(data)
        found = [free for at in units if (free := self._rule(data, at)) is not None]
        return bool(found) and all(found)


def _with_lengths(data: bytes, prefix: int) -> Iterator[int]:
    """Yield where units begin, each after its length."""
    at = 0
    while at + prefix < len(data):
        length = int.from_bytes(data[at : at + prefix], "big")
        yield at + prefix
        at += prefix + length


def _with_start_codes(data: bytes) -> Iterator[int]:
    """Yield where units begin, each after a start code."""
    at = data.find(_START)
    while 0 <= at < len(data) - 5:
        yield at + 3
        at = data.find(_START, at + 3)


def _h264(data: bytes, at: int) -> bool | None:
    return data[at] & 0x60 == 0 if data[at] & 0x1F in (1, 2, 5) else None  # nal_ref_idc of a slice


def _hevc(data: bytes, at: int) -> bool | None:
    kind = data[at] >> 1 & 0x3F
    return kind <= 14 and kind % 2 == 0 if kind < 32 else None  # TRAIL_N to RSV_VCL_N14


def _mpeg2(data: bytes, at: int) -> bool | None:
    return data[at + 2] >> 3 & 7 == 3 if data[at] == 0 else None  # picture_coding_type of a B picture


def _mpeg4(data: bytes, at: int) -> bool | None:
    return data[at + 1] >> 6 == 2 if data[at] == 0xB6 else None  # vop_coding_type of a B picture


_RULES: dict[str, _Rule] = {
    "h264": _h264,
    "hevc": _hevc,
    "mpeg1video": _mpeg2,
    "mpeg2video": _mpeg2,
    "mpeg4": _mpeg4,
}
