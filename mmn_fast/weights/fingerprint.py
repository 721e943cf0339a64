"""The fingerprint of a model, so that embeddings of two models are never mixed.

The fingerprint is a hash of everything that affects results: the weights, the text encoder's sizes, the preset's values
and the tokenizer's behaviour. It is computed from the values that were read, never copied from a file. It stays the
same when a later version adds a value to presets (with the default that keeps results as they were) or when the
tokenizers library writes its files differently.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mmn_fast.presets import Preset, TextEncoderConfig
from mmn_fast.storage.checksums import plain_sha256
from mmn_fast.tokenizer import Tokenizer

# A model's name, training, evaluation and file layout do not affect its results.
_UNDECIDING = frozenset({"name", "recall_at", "recall_ious", "timestamp_unit", "feature_key", "loss", "recipe"})


def fingerprint_of(preset: Preset, text: TextEncoderConfig, weights_sha256: str, tokenizer: Tokenizer) -> str:
    """A model's fingerprint, 32 hexadecimal digits.

    Args:
        preset: sizes and conventions.
        text: sizes of the text encoder; the weights do not show the number of heads.
        weights_sha256: `storage.checksums.combined_sha256` of the weights.
        tokenizer: the word pieces.
    """
    plain = {
        "preset": deciding_values(preset),
        "text_encoder": dataclasses.asdict(text),
        "weights": weights_sha256,
        "tokenizer": tokenizer.digest(),
    }
    return plain_sha256(plain)[:32]


def deciding_values(preset: Preset) -> dict[str, Any]:
    """The preset's values that affect results and differ from the defaults, by name."""
    values = {field: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field, value in values.items()
        if field.name not in _UNDECIDING and (field.default is dataclasses.MISSING or value != field.default)
    }


def first_difference(held: Preset, wanted: Preset) -> str | None:
    """The first differing value that affects results, as "name: held, got wanted"; None if all agree."""
    for field in dataclasses.fields(held):
        mine, other = getattr(held, field.name), getattr(wanted, field.name)
        if field.name not in _UNDECIDING and mine != other:
            return f"{field.name}: {mine!r}, got {other!r}"
    return None
