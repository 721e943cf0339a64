"""Draws labelled videos from the demo's world, to evaluate engines."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.demo.shapes import make_video
from mmn_fast.evaluation.agreement import LabelledSplit
from mmn_fast.types import Query, Video


def draw_split(num_videos: int, seed: int = 0, split: str = "test", workers: int = 1) -> LabelledSplit:
    """Draw videos of a split with their features; the same arguments give the same videos.

    Args:
        num_videos: number of videos; 150 videos have over 1,000 sentences.
        seed: seed of the data set.
        split: one of `shapes.SPLITS`.
        workers: processes.
    """
    draw = partial(_draw, split, seed)
    if workers == 1:
        drawn = [draw(number) for number in range(num_videos)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(draw, range(num_videos), chunksize=4))
    return LabelledSplit([query for query, _ in drawn], [moments for _, moments in drawn])


def _draw(split: str, seed: int, number: int) -> tuple[Query, Float32]:
    video = make_video(split, seed, number)
    spans = [(sentence.fact.start_s, sentence.fact.end_s) for sentence in video.sentences]
    query = Query(
        Video(video.features, video.duration_s, video.video_id), [sentence.text for sentence in video.sentences]
    )
    return query, np.array(spans, np.float32)
