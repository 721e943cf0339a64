"""Recall of the demo model on long videos, whole and in windows.

    python -m benchmarks.window_recall [--videos 12] [--parts 8] [--threads 2]

A long video is several videos of the world of shapes one after the other. A sentence is true in its own part. By chance
it may be true in another part as well, which lowers R@1 more than R@5.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

import mmn_fast
from mmn_fast.demo.shapes import make_video
from mmn_fast.engine import Engine
from mmn_fast.types import Moment, Query, Video
from mmn_fast.viz.values import span_iou

FIRST_SEED = 900  # of the test split; no training has seen it
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"window_s": 16, "overlap": 0},
    {"window_s": 16, "overlap": 0.25},
    {"window_s": 16, "overlap": 0.5},
    {"window_s": 16, "overlap": 0.75},
    {"window_s": 8, "overlap": 0.5},
    {"window_s": 32, "overlap": 0.5},
)


@dataclass(frozen=True, eq=False)
class LongVideo:
    """Some videos one after the other.

    Attributes:
        query: the long video and the sentences of all parts.
        truth_s: per sentence its true span in the long video.
    """

    query: Query
    truth_s: list[tuple[float, float]]


def draw(number: int, parts: int) -> LongVideo:
    """Draw a long video of the test split."""
    drawn = [make_video("test", FIRST_SEED + number * parts + part, 0) for part in range(parts)]
    starts = np.cumsum([0.0, *(one.duration_s for one in drawn)]).tolist()
    truth_s = [
        (start + sentence.fact.start_s, start + sentence.fact.end_s)
        for start, one in zip(starts, drawn, strict=False)
        for sentence in one.sentences
    ]
    whole = Video(np.concatenate([one.features for one in drawn]), starts[-1])
    return LongVideo(Query(whole, [sentence.text for one in drawn for sentence in one.sentences]), truth_s)


def recall(found: list[list[list[Moment]]], truth_s: list[list[tuple[float, float]]]) -> tuple[float, float]:
    """R@1 and R@5 at IoU 0.5, 0 to 1."""
    fits = [
        [(span_iou(moment, (span,)) or 0) >= 0.5 for moment in moments]
        for result, spans in zip(found, truth_s, strict=True)
        for moments, span in zip(result, spans, strict=True)
    ]
    return float(np.mean([one[0] for one in fits])), float(np.mean([any(one[:5]) for one in fits]))


def figures(engine: Engine, videos: list[LongVideo], way: dict[str, Any]) -> tuple[float, float]:
    """R@1 and R@5 of long videos that are grounded in one way."""
    return recall(engine.ground([one.query for one in videos], 5, **way), [one.truth_s for one in videos])


def main() -> None:
    """Print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    engine = mmn_fast.load("demo", threads=options.threads)
    videos = [draw(number, options.parts) for number in range(options.videos)]
    mean_s = np.mean([one.query.video.duration_s for one in videos])
    print(f"{options.videos} videos of {mean_s:.0f} s, {sum(len(one.truth_s) for one in videos)} sentences")
    for way in WAYS:
        first, five = figures(engine, videos, way)
        name = f"windows of {way['window_s']} s, overlap {way['overlap']}" if way else "whole"
        print(f"{name:32} R@1,IoU@0.5 {100 * first:5.1f}  R@5,IoU@0.5 {100 * five:5.1f}", flush=True)


if __name__ == "__main__":
    main()
