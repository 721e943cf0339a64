"""Sizes of the text encoder, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmn_fast.checks import Integer, Rule, check_bytes, check_fields, fail

_TEXT_RULES: dict[str, Rule] = {
    **dict.fromkeys(("vocab_size", "max_tokens", "width", "num_heads", "ffn_width"), Integer()),
    "num_layers": Integer(1, 1000),
}


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder.

    Attributes:
        vocab_size: word pieces.
        max_tokens: longest input in word pieces, [CLS] and [SEP] included.
        width: H, hidden width.
        num_layers: transformer layers.
        num_heads: attention heads; divides H.
        ffn_width: inner width of the feed-forward blocks.
    """

    vocab_size: int = 30522
    max_tokens: int = 512
    width: int = 768
    num_layers: int = 6
    num_heads: int = 12
    ffn_width: int = 3072

    NORM_EPS: ClassVar[float] = 1e-12
    """Epsilon of every LayerNorm in the published DistilBERT."""

    def __post_init__(self) -> None:
        check_fields(self, _TEXT_RULES, "text_encoder")
        if self.width % self.num_heads:
            raise fail("text_encoder: width", f"a multiple of num_heads, {self.num_heads}", self.width)
        layer = 4 * self.width**2 + 2 * self.width * self.ffn_width
        count = (self.vocab_size + self.max_tokens) * self.width + self.num_layers * layer
        check_bytes(4 * count, "weights of the text encoder", "text_encoder")
