"""Small libraries of random embeddings, and the slow search that an index is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import mmn_fast
from mmn_fast import Match, MomentIndex
from mmn_fast.checkpoint import save_model
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.geometry import plan_for
from tests.tiny_model import tiny_model

STORAGES = ("fp32", "fp16", "int8")
WINDOWS = ((0.0, 4.0), (2.0, 4.0), (5.5, 4.0))  # of a video of 9.5 s


def tiny_engine(root: Path) -> mmn_fast.Engine:
    """An engine of a model of some kilobytes, backend native."""
    save_model(tiny_model(root), root / "model")
    return mmn_fast.load(root / "model", device="cpu", threads=1)


def _unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_videos(
    engine: mmn_fast.Engine, names: Sequence[str], seed: int = 0, cut: Iterable[int] = ()
) -> VideoEmbeddings:
    """Random embeddings of some videos; those whose numbers are in `cut` have three windows."""
    rng, cut = np.random.default_rng(seed), set(cut)
    spans = tuple(WINDOWS if n in cut else ((0.0, 3.0 + n % 5),) for n in range(len(names)))
    shape = sum(map(len, spans)), plan_for(engine.preset).num_proposals, engine.preset.joint_size
    return VideoEmbeddings(
        contrastive=_unit(rng, *shape),
        iou=_unit(rng, *shape),
        fingerprint=engine.fingerprint,
        durations_s=tuple(9.5 if n in cut else 3.0 + n % 5 for n in range(len(names))),
        video_ids=tuple(names),
        windows=spans if cut else (),
    )


def random_text(engine: mmn_fast.Engine, count: int, seed: int = 100) -> TextEmbeddings:
    """Random embeddings of some sentences."""
    rng, width = np.random.default_rng(seed), engine.preset.joint_size
    names = tuple(f"sentence {n}" for n in range(count))
    return TextEmbeddings(_unit(rng, count, width), _unit(rng, count, width), engine.fingerprint, names)


def brute_force(
    engine: mmn_fast.Engine,
    videos: VideoEmbeddings,
    text: TextEmbeddings,
    top_k: int = 10,
    per_video: int = 1,
    min_score: float | None = None,
) -> list[list[Match]]:
    """What `MomentIndex.search` must give: `Engine.score` of every video, merged."""
    scores = engine.score(videos, text, per_video)
    found = []
    for sentence in range(len(text)):
        matches = [
            Match(video_id, moment.start_s, moment.end_s, moment.score)
            for video_id, of_video in zip(videos.video_ids, scores, strict=True)
            for moment in of_video[sentence]
            if min_score is None or moment.score >= min_score
        ]
        found.append(sorted(matches, key=lambda match: -match.score)[:top_k])  # stable: ties stay in the order added
    return found


def assert_exact(index: MomentIndex, engine: mmn_fast.Engine, text: TextEmbeddings, top_k: int = 7) -> None:
    """Compare searches with `brute_force` over the stored embeddings, bit for bit."""
    videos = index.embeddings()
    for per_video, threads in ((1, 2), (3, 1)):
        assert index.search(text, top_k, per_video, threads=threads) == brute_force(
            engine, videos, text, top_k, per_video
        )
