"""Grounds sentences in videos that are cut into windows; memory holds one block of windows at a time.

Every window goes through the three seams of the backend as a video of its own, so every backend can do it, and moments
from kept embeddings equal those that are grounded at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.backends.base import PAIRS_AT_ONCE, Backend, Branches, Selection
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.features import pre_clips
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.postprocess import to_moments
from mmn_fast.presets import Preset
from mmn_fast.request import VIDEOS_AT_ONCE
from mmn_fast.types import Moment
from mmn_fast.windows.merge import Found, found_in_window, merged

_Item = TypeVar("_Item")
_bar_is_shown: ContextVar[bool] = ContextVar("_bar_is_shown", default=False)


class Scorer(Protocol):
    """The part of a backend that chooses moments from embeddings."""

    @property
    def preset(self) -> Preset:
        """The model's conventions."""

    def top_moments(self, video: Branches, text: Branches, moments: Float32, top_k: int) -> Selection:
        """As `Backend.top_moments`."""


@contextmanager
def inside_a_bar() -> Iterator[None]:
    """Show no bar of windows, because the caller shows one: two bars would overwrite each other's line."""
    before = _bar_is_shown.set(True)
    try:
        yield
    finally:
        _bar_is_shown.reset(before)


def encoded_blocks(
    backend: Backend, pieces: Sequence[tuple[Any, str]], progress: bool = False
) -> Iterator[tuple[int, Branches]]:
    """Encode windows in batches of at most `VIDEOS_AT_ONCE`.

    Args:
        backend: runs the model.
        pieces: per window its feature rows, float [n, D], and its video's name in messages.
        progress: show a bar on stderr if there are several batches.

    Yields:
        The number of the batch's first window, and the batch's embeddings, float32 [W, P, J] twice.
    """
    for first in shown(range(0, len(pieces), VIDEOS_AT_ONCE), progress):
        batch = pieces[first : first + VIDEOS_AT_ONCE]
        clips = [pre_clips(rows, backend.preset, f"{name}.features") for rows, name in batch]
        yield first, backend.encode_video(np.stack(clips))


class Collected:
    """Collects the moments of some sentences, window after window, and merges them.

    Memory holds 20 bytes per moment that a window's own suppression leaves.

    Args:
        backend: scores embeddings.
        text: embeddings of S sentences, float32 [S, J] twice.
    """

    def __init__(self, backend: Scorer, text: Branches) -> None:
        self._backend, self._text = backend, text
        self._plan = plan_for(backend.preset)
        self._found: list[list[Found]] = [[] for _ in text[0]]

    def add(self, video: Branches, start_s: float, duration_s: float) -> None:
        """Ground the sentences in the next window.

        Args:
            video: its embeddings, float32 [P, J] twice.
            start_s: where it starts, seconds.
            duration_s: its length, seconds.
        """
        moments = cells_to_moments(self._plan.cells, duration_s, self._plan.num_clips)
        selection = self._backend.top_moments(video, self._text, moments, self._plan.num_proposals)
        for sentence, found in enumerate(found_in_window(*selection, moments, start_s)):
            self._found[sentence].append(found)

    def merged(self, duration_s: float, top_k: int) -> list[list[Moment]]:
        """The best moments of each sentence in the whole video, `duration_s` seconds long."""
        threshold = self._backend.preset.nms_iou
        return [merged(found, duration_s, threshold, top_k) for found in self._found]


def moments_of_video(
    backend: Scorer,
    video: Iterable[Branches],
    text: Branches,
    spans: Sequence[tuple[float, float]],
    duration_s: float,
    top_k: int,
) -> list[list[Moment]]:
    """Ground sentences in one video from its embeddings.

    Args:
        backend: scores embeddings.
        video: per window its embeddings, float32 [P, J] twice.
        text: embeddings of the sentences, float32 [S, J] twice.
        spans: start and length of each window, seconds.
        duration_s: length of the video in seconds.
        top_k: moments per sentence.

    Returns:
        Per sentence its moments, best first.
    """
    if len(spans) == 1:
        plan, (whole,) = plan_for(backend.preset), video
        moments, top_k = cells_to_moments(plan.cells, duration_s, plan.num_clips), min(top_k, plan.num_proposals)
        return to_moments(*backend.top_moments(whole, text, moments, top_k), moments)
    collected = Collected(backend, text)
    for window, (start_s, length_s) in zip(video, spans, strict=True):
        collected.add(window, start_s, length_s)
    return collected.merged(duration_s, top_k)


def moments_of_pairs(
    backend: Backend, pairs: Sequence[tuple[VideoEmbeddings, TextEmbeddings]], top_k: int
) -> list[list[list[list[Moment]]]]:
    """Ground sentences in videos from their embeddings; all videos that are not cut go through one call of the backend.

    Args:
        backend: scores embeddings.
        pairs: videos, and the sentences to ground in each of them.
        top_k: moments per sentence.

    Returns:
        `result[pair][v][s]`: moments of sentence s in video v of the pair, best first.
    """
    result: list[list[list[list[Moment]]]] = []
    whole: list[tuple[tuple[Branches, Branches], float]] = []  # videos that are not cut, and their lengths
    places: list[tuple[int, int]] = []  # where in `result` they belong
    for number, (video, text) in enumerate(pairs):
        sentences, row = (text.contrastive, text.iou), 0
        result.append([[] for _ in video.spans])
        for v, (spans, duration_s) in enumerate(zip(video.spans, video.durations_s, strict=True)):
            mine = slice(row, row := row + len(spans))
            if len(spans) == 1:
                whole.append((((video.contrastive[mine.start], video.iou[mine.start]), sentences), duration_s))
                places.append((number, v))
                continue
            windows = zip(video.contrastive[mine], video.iou[mine], strict=True)
            result[number][v] = moments_of_video(backend, windows, sentences, spans, duration_s, top_k)
    for first in range(0, len(whole), PAIRS_AT_ONCE):
        some = whole[first : first + PAIRS_AT_ONCE]
        for (number, v), found in zip(places[first:], _moments_of_whole(backend, some, top_k), strict=False):
            result[number][v] = found
    return result


def _moments_of_whole(
    backend: Backend, whole: Sequence[tuple[tuple[Branches, Branches], float]], top_k: int
) -> list[list[list[Moment]]]:
    """Per video, given as its and its sentences' embeddings and its length, the moments of its sentences."""
    if len(whole) == 1:  # less to prepare: 0.06 instead of 0.085 ms for one sentence and the demo's model
        (((video, text), duration_s),) = whole
        return [moments_of_video(backend, (video,), text, ((0.0, duration_s),), duration_s, top_k)]
    plan, pairs = plan_for(backend.preset), [pair for pair, _ in whole]
    lengths = np.array([duration_s for _, duration_s in whole])[:, None, None]
    moments = cells_to_moments(plan.cells, lengths, plan.num_clips)
    chosen, scores = backend.top_moments_of_pairs(pairs, moments, min(top_k, plan.num_proposals))
    counts = [len(contrastive) for _, (contrastive, _) in pairs]
    found = iter(to_moments(chosen, scores, moments, np.repeat(np.arange(len(pairs)), counts)))
    return [list(islice(found, count)) for count in counts]


def shown(items: Sequence[_Item], progress: bool) -> Iterable[_Item]:
    """The items, with a bar on stderr if there are two or more and progress is shown."""
    if not progress or len(items) < 2 or _bar_is_shown.get():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description="windows", transient=True, console=Console(stderr=True))
