"""From frames to clip features: `make_extractor` makes an extractor by its name."""

from mmn_fast.features.extractors.base import ExtractedFeatures, Extractor
from mmn_fast.features.extractors.registry import SPECS, extractor_for, make_extractor

__all__ = ["SPECS", "ExtractedFeatures", "Extractor", "extractor_for", "make_extractor"]
