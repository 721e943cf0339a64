"""Options of every extractor, checked."""

from __future__ import annotations

from dataclasses import dataclass

from mmn_fast.checks import Integer, Number, Optional, Rule, Text
from mmn_fast.errors import InputError


@dataclass(frozen=True)
class ExtractorOptions:
    """How an extractor samples and where it runs; None and "auto" leave the choice to the extractor.

    Attributes:
        fps: sampled frames per second.
        clip_frames: sampled frames per row.
        stride: sampled frames from one row's first frame to the next row's.
        output: name of the network's output that becomes a row.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: clips that the network takes at once.
        threads: CPU threads, of the decoder too.

    Raises:
        InputError: a value is outside what its name says.
    """

    fps: float | None = None
    clip_frames: int | None = None
    stride: int | None = None
    output: str | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule(getattr(self, name), name))

    def refuse(self, extractor: str, **why: str) -> None:
        """Refuse options that an extractor does not have.

        Args:
            extractor: its name, for messages.
            **why: option -> the reason, as the end of a sentence.

        Raises:
            InputError: one of these options is given.
        """
        for name, reason in why.items():
            if getattr(self, name) not in (None, "auto"):
                raise InputError(f"{name}: the extractor {extractor!r} {reason}, got {getattr(self, name)!r}")


_RULES: dict[str, Rule] = {
    "fps": Optional(Number(0, 1000, above=True)),
    "clip_frames": Optional(Integer(1, 4096)),
    "stride": Optional(Integer(1, 2**20)),
    "output": Optional(Text(most=1000)),
    "device": Text(most=100),
    "precision": Text(most=100),
    "batch_size": Optional(Integer(1, 2**20)),
    "threads": Optional(Integer(1, 4096)),
}
