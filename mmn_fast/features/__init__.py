"""Features of videos: reads them from files, checks them, averages them into pre-clips.

The published extractors store one row per source clip; the model takes T averaged rows. NumPy only: torch, h5py and
safetensors are imported only when a file or a tensor needs them.
"""

from mmn_fast.features.extractors.pixels import PixelFeatures
from mmn_fast.features.files import load_features
from mmn_fast.features.pre_clips import (
    check_duration,
    check_features,
    float32_rows,
    pre_clip_spans,
    pre_clips,
    tube_pre_clips,
)
from mmn_fast.features.store import FeatureStore, open_features

__all__ = [
    "FeatureStore",
    "PixelFeatures",
    "check_duration",
    "check_features",
    "float32_rows",
    "load_features",
    "open_features",
    "pre_clip_spans",
    "pre_clips",
    "tube_pre_clips",
]
