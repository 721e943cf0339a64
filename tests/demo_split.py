"""Videos of the demo's test split and what the reference gives for them, for the tests that exports agree with it."""

from __future__ import annotations

from functools import cache

import mmn_fast
from mmn_fast.demo.split import draw_split
from mmn_fast.evaluation.agreement import LabelledSplit
from mmn_fast.types import ScoreMaps


@cache
def demo_split(videos: int) -> tuple[LabelledSplit, list[ScoreMaps]]:
    """The split and its maps in float64, made once per process."""
    split = draw_split(videos, workers=1)
    return split, mmn_fast.load("demo", backend="torch", precision="fp64").score_maps(split.batch)
