"""Reads from a compressed packet's headers whether other frames refer to its frame, and whether a decoder may start."""

from __future__ import annotations

from collections.abc import Callable, Iterator

_START = b"\x00\x00\x01"
_Rule = Callable[[bytes, int], "bool | None"]


class Headers:
    """Reads the headers of one stream's packets.

    A free frame is one that no other frame refers to. H.264, H.265 with one temporal layer and MPEG-1, -2 and -4 say it
    in their headers. FFmpeg's decoders leave out the same frames (skip_frame=nonref), but do not say which packets
    those were.

    Attributes:
        tell_free: whether the codec tells free frames.
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
        self.tell_free = self._rule is not None
        self._codec = codec
        self._prefix = 0  # bytes of a unit's length; 0: units begin with a start code
        if codec == "h264" and len(extra) > 6 and extra[0] == 1:
            self._prefix = (extra[4] & 3) + 1
        elif codec == "hevc" and len(extra) > 22 and extra[0] == 1:
            self._prefix = (extra[21] & 3) + 1

    def are_free(self, data: bytes) -> bool:
        """Whether all pictures of a packet are free; False for a packet without any picture."""
        assert self._rule is not None
        found = [free for at in self._units(data) if (free := self._rule(data, at)) is not None]
        return bool(found) and all(found)

    def are_alone(self, data: bytes) -> bool:
        """Whether a packet holds slices of pictures and nothing that outlasts them, such as a picture parameter set."""
        kinds = _SLICES.get(self._codec)
        return kinds is not None and all(kinds(data[at]) for at in self._units(data))

    def start_afresh(self, data: bytes) -> bool:
        """Whether a decoder that starts at a key packet shows it and what follows as if it had begun earlier.

        Containers and FFmpeg also mark packets of H.264 where a gradual refresh begins (x264's intra-refresh).
        """
        if self._codec == "h264":
            return any(_is_h264_start(data, at) for at in self._units(data))
        if self._codec == "hevc":
            return any(16 <= data[at] >> 1 & 0x3F <= 23 for at in self._units(data))  # pictures of random access
        return True

    def _units(self, data: bytes) -> Iterator[int]:
        return _with_lengths(data, self._prefix) if self._prefix else _with_start_codes(data)


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


def _is_h264_start(data: bytes, at: int) -> bool:
    """Whether a unit is a slice of an IDR picture, or says that the picture after it restores all at once."""
    kind = data[at] & 0x1F
    # A recovery point is message 6; its first number, the frames until all is right, is 0 if the first bit is set.
    return kind == 5 or (kind == 6 and any(message == 6 and first & 0x80 for message, first in _messages(data, at + 1)))


def _messages(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield the number and the first byte of each message of an SEI unit."""
    while at + 2 < len(data) and data[at] != 0x80:
        numbers = []
        for _ in range(2):  # the message's number and its size, both as sums of bytes
            value = 0
            while at < len(data) - 2 and data[at] == 0xFF:
                value, at = value + 255, at + 1
            numbers.append(value + data[at])
            at += 1
        yield numbers[0], data[at]
        at += numbers[1]


def _hevc(data: bytes, at: int) -> bool | None:
    kind = data[at] >> 1 & 0x3F
    return kind <= 14 and kind % 2 == 0 if kind < 32 else None  # TRAIL_N to RSV_VCL_N14


def _mpeg2(data: bytes, at: int) -> bool | None:
    return data[at + 2] >> 3 & 7 == 3 if data[at] == 0 else None  # picture_coding_type of a B picture


def _mpeg4(data: bytes, at: int) -> bool | None:
    return data[at + 1] >> 6 == 2 if data[at] == 0xB6 else None  # vop_coding_type of a B picture


_SLICES: dict[str, Callable[[int], bool]] = {
    "h264": lambda head: head & 0x1F in (1, 2, 3, 4, 9, 12),
    "hevc": lambda head: head >> 1 & 0x3F < 10 or head >> 1 & 0x3F in (35, 38),
}
"""Whether a unit, by its first byte, is a slice of a picture from which no decoder starts, a delimiter or filling."""


_RULES: dict[str, _Rule] = {
    "h264": _h264,
    "hevc": _hevc,
    "mpeg1video": _mpeg2,
    "mpeg2video": _mpeg2,
    "mpeg4": _mpeg4,
}
