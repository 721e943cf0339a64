"""Grounds golden cases by backend native, for a test that starts this program with a forced instruction set.

    python -m tests.golden.grounded OUTPUT.npz CASE=MODEL [CASE=MODEL ...]

OUTPUT gets the instruction set and, for each video of each case, what `grounded` gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.engine import Engine

TOP_K = 20


def batch_of(case: cases.GoldenCase) -> list[mmn_fast.Query]:
    """Make queries of the case's videos and sentences."""
    return [
        mmn_fast.Query(mmn_fast.Video(video.features, video.duration_s, video.video_id), video.sentences)
        for video in case.videos
    ]


@contextmanager
def _videos_encoded_once(engine: Engine) -> Iterator[None]:
    """Let the backend encode equal videos once: in float64, one full-size video takes half a minute."""
    backend: Any = engine._backend
    encode: Callable[[np.ndarray], Any] = backend.encode_video
    kept: dict[bytes, Any] = {}

    def encode_once(pre_clips: np.ndarray) -> Any:
        key = pre_clips.tobytes()
        if key not in kept:
            kept[key] = encode(pre_clips)
        return kept[key]

    backend.encode_video = encode_once
    try:
        yield
    finally:
        del backend.encode_video


def grounded(engine: Engine, case: cases.GoldenCase) -> list[dict[str, np.ndarray]]:
    """Ground each video of a case.

    Returns:
        contrastive, iou and fused [S, P], cells [P, 2] and moments [S, 20, 2] in seconds (NaN where suppression leaves
        fewer). A case of tubes has every tube as a video, with the answer of all its query's tubes, see `_answer`.
    """
    batch = batch_of(case)
    with _videos_encoded_once(engine):
        both = list(zip(engine.score_maps(batch), engine.ground(batch, top_k=TOP_K), strict=True))
        queries = case.tube_queries if case.is_tubes else []
        answers = [_answer(result[0][0]) for result in engine.ground_tubes(queries)] if queries else []
    of_tubes = [answer for answer, query in zip(answers, queries, strict=True) for _ in query.tubes]
    found: list[dict[str, np.ndarray]] = []
    for maps, result in both:
        moments = np.full((len(result), TOP_K, 2), np.nan, np.float32)
        for row, chosen in zip(moments, result, strict=True):
            row[: len(chosen)] = [(moment.start_s, moment.end_s) for moment in chosen]
        found.append({**{name: maps[name] for name in maps.keys()}, "moments": moments})  # noqa: SIM118 - not a dict
        if of_tubes:
            found[-1]["answer"] = of_tubes[len(found) - 1]
    return found


def _answer(moment: mmn_fast.TubeMoment) -> np.ndarray:
    """Turn a tube's moment into rows of tube, start row, end row, frame and box, float64 [n, 8]."""
    head = np.tile([moment.tube, moment.start_row, moment.end_row], (len(moment.boxes), 1))
    frames = np.arange(moment.start_frame, moment.end_frame + 1)
    return np.column_stack([head, frames, moment.boxes])


def main(output: str, *models: str) -> None:
    """Ground every named case and write the results."""
    arrays: dict[str, Any] = {}
    for item in models:
        name, _, model = item.partition("=")
        engine = mmn_fast.load(model, backend="native")
        arrays["isa"] = engine.info()["cpu_isa"]
        for number, video in enumerate(grounded(engine, cases.load(name))):
            arrays |= {f"{name}.{number}.{key}": array for key, array in video.items()}
    assert "torch" not in sys.modules
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
