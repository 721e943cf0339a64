"""Videos of the demo's test split with the reference's score maps, to compare exports with."""

from __future__ import annotations

from functools import cache

import mmn_fast
from mmn_fast.demo.split import draw_split
from mmn_fast.evaluation.agreement import LabelledSplit
from mmn_fast.types import ScoreMaps


@cache
def demo_split(videos: int) -> tuple[LabelledSplit, list[ScoreMaps]]:
    """Draw the split and compute its maps in float64, once per process."""
    split = draw_split(videos, workers=1)
    return split, mmn_fast.load("demo", backend="torch", precision="fp64").score_maps(split.batch)
