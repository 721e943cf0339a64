"""The extractor that a command takes for video files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.engine import Engine
    from mmn_fast.features.extractors.base import Extractor


def chosen_extractor(engine: Engine, extractor: str | None, any_features: bool) -> Extractor:
    """The extractor of the model's contract, or the named one.

    Args:
        engine: its model says how features are made, or does not.
        extractor: the value of `--extractor`.
        any_features: take features of another contract, with a warning.

    Raises:
        InputError: the extractor cannot be made, or its rows are none that the model takes.
    """
    from mmn_fast.features.extractors.registry import make_extractor
    from mmn_fast.features.matching import refuse_other_features

    if extractor is None or (engine.contract is not None and not any_features):
        chosen = engine.extractor(extractor)
    else:
        chosen = make_extractor(extractor)
        refuse_other_features(engine.contract, chosen.contract, f"extractor: {extractor}", True)
    if chosen.width != engine.preset.input_size:
        raise InputError(
            f"extractor: expected rows of {engine.preset.input_size} values, as the model takes, got"
            f" {chosen.width} of {chosen.contract.extractor}"
        )
    return chosen
