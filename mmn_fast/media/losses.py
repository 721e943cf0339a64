"""Counts what of a file could not be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Losses:
    """Damage that was met in one pass over a file.

    Attributes:
        packets: packets that the decoder refused.
        absent: frames that never came out of the decoder; packets that it refused may be among them.
        frames: frames that the decoder repaired or marked as damaged.
        unread: failures of the container between two packets.
        jumps: leaps of the time stamps that were left out.
        missing: frames that the index lists and that are not in the file.
        short_s: seconds that the header promises after the last frame.
    """

    packets: int = 0
    absent: int = 0
    frames: int = 0
    unread: int = 0
    jumps: int = 0
    missing: int = 0
    short_s: float = 0.0

    def sentence(self) -> str | None:
        """All losses in one sentence; None if there are none."""
        parts = [
            _counted(max(self.packets, self.absent), "frame could not be decoded", "frames could not be decoded"),
            _counted(self.frames, "frame is damaged", "frames are damaged"),
            _counted(self.unread, "part of the file could not be read", "parts of the file could not be read"),
            _counted(self.jumps, "leap of the time stamps was left out", "leaps of the time stamps were left out"),
            _counted(self.missing, "frame is missing at the end", "frames are missing at the end"),
        ]
        if self.short_s and not self.missing:
            parts.append(f"the file ends {self.short_s:.1f} s before the end that its header names")
        return ", ".join(filter(None, parts)) or None


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}" if number else ""
