"""What requests ask of the engine, and the function that answers many of them at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.geometry import plan_for
from mmn_fast.index.search import Wanted
from mmn_fast.kernels.cpu.ops import match_scores
from mmn_fast.postprocess import fuse_scores
from mmn_fast.serving.http.problems import Problem
from mmn_fast.serving.library import Library
from mmn_fast.serving.metrics import Metrics
from mmn_fast.types import Moment, Query, Video

_LOG = logging.getLogger(__name__)
_PLACE = re.compile(r"^batch\[0\]\.(?:video\.)?")


@dataclass(frozen=True, eq=False)
class Ground:
    """Ground sentences in one video.

    Attributes:
        video: its features, or its id in the index.
        sentences: at least one.
        top_k: moments per sentence.
        maps: also give the scores of all proposals.
        window_s: cut a longer video into windows; for features only.
        overlap: as for `Engine.ground`.
    """

    video: Video | str
    sentences: tuple[str, ...]
    top_k: int = 5
    maps: bool = False
    window_s: float | None = None
    overlap: float | None = None


@dataclass(frozen=True, eq=False)
class Search:
    """Search the index.

    Attributes:
        sentences: at least one.
        top_k: moments per sentence.
        per_video: most moments of one video.
        min_score: least score.
        videos: ids to search; None searches all.
    """

    sentences: tuple[str, ...]
    top_k: int = 10
    per_video: int = 1
    min_score: float | None = None
    videos: tuple[str, ...] | None = None


Job = Ground | Search


class Answers:
    """Answers jobs with an engine and a library; an answer does not depend on the other jobs of the call.

    Two calls at a time share the engine's threads, where its backend can: one call's Python runs beside the other's
    kernels, and kernels on fewer threads wait less for the core that HTTP takes. A call alone has all threads.

    Attributes:
        calls: how many calls may run at a time.
    """

    def __init__(self, engine: Engine, library: Library, metrics: Metrics) -> None:
        self._engine, self._library, self._metrics = engine, library, metrics
        threads = engine.info().get("threads")
        half = engine.with_threads(threads // 2) if isinstance(threads, int) and threads > 1 else None
        self._shared = half or engine
        self.calls = 1 if half is None else 2

    def __call__(self, jobs: list[Job], alone: bool) -> list[Any]:
        """Answer jobs.

        Args:
            jobs: the jobs.
            alone: whether no other call runs.

        Returns:
            Per job a dict, ready for `json.dumps`, or an exception.
        """
        answers: list[Any] = [None] * len(jobs)
        groups: dict[Any, list[int]] = {}
        for number, job in enumerate(jobs):
            with_features = isinstance(job, Ground) and isinstance(job.video, Video)
            key = (job.window_s, job.overlap) if isinstance(job, Ground) and with_features else None
            groups.setdefault((with_features, key), []).append(number)
        for (with_features, _), numbers in groups.items():
            run: Callable[[Sequence[Any]], list[Any]] = partial(
                self._ground if with_features else self._by_embeddings, self._engine if alone else self._shared
            )
            for number, answer in zip(numbers, _each(run, [jobs[n] for n in numbers]), strict=True):
                answers[number] = answer
        return answers

    def _ground(self, engine: Engine, jobs: Sequence[Ground]) -> list[Any]:
        batch = [Query(job.video, job.sentences) for job in jobs if isinstance(job.video, Video)]
        options = {"window_s": jobs[0].window_s, "overlap": jobs[0].overlap}
        with self._metrics.stage("ground"):
            found = engine.ground(batch, max(job.top_k for job in jobs), **options)
        maps: dict[int, Any] = {}
        wanted = [number for number, job in enumerate(jobs) if job.maps and job.window_s is None]
        if wanted:
            with self._metrics.stage("maps"):
                made = engine.score_maps([batch[number] for number in wanted])
            maps = {number: one.fused for number, one in zip(wanted, made, strict=True)}
        return [
            self._grounded(job, query.video.video_id, query.video.duration_s, moments, maps.get(number))
            for number, (job, query, moments) in enumerate(zip(jobs, batch, found, strict=True))
        ]

    def _by_embeddings(self, engine: Engine, jobs: Sequence[Job]) -> list[Any]:
        with self._metrics.stage("encode_text"):
            texts = engine.encode_text([sentence for job in jobs for sentence in job.sentences])
        answers: list[Any] = [None] * len(jobs)
        pairs: dict[int, tuple[VideoEmbeddings, TextEmbeddings]] = {}
        row = 0
        for number, job in enumerate(jobs):
            rows = slice(row, row := row + len(job.sentences))
            text = TextEmbeddings(
                contrastive=texts.contrastive[rows],
                iou=texts.iou[rows],
                fingerprint=texts.fingerprint,
                sentences=job.sentences,
            )
            try:
                if isinstance(job, Search):
                    answers[number] = self._searched(job, text)
                else:
                    assert isinstance(job.video, str)
                    pairs[number] = self._library.embeddings(job.video), text
            except (InputError, Problem) as error:
                answers[number] = error
        if pairs:
            with self._metrics.stage("score"):
                found = engine.score_pairs(list(pairs.values()), max(jobs[number].top_k for number in pairs))
            for number, (moments,) in zip(pairs, found, strict=True):
                answers[number] = self._scored(jobs[number], *pairs[number], moments)
        return answers

    def _scored(
        self, job: Job, video: VideoEmbeddings, text: TextEmbeddings, found: list[list[Moment]]
    ) -> dict[str, Any]:
        assert isinstance(job, Ground)
        fused = None
        if job.maps and len(video.contrastive) == 1:
            scores = match_scores(video.contrastive[0], video.iou[0], text.contrastive, text.iou)
            fused = fuse_scores(*scores, self._engine.preset)
        return self._grounded(job, video.video_ids[0], video.durations_s[0], found, fused)

    def _searched(self, job: Search, text: TextEmbeddings) -> dict[str, Any]:
        with self._metrics.stage("search"):
            wanted = Wanted(job.top_k, job.per_video, job.min_score)
            found = self._library.search(text, wanted, job.videos)
        return {
            "videos": len(self._library),
            "results": [
                {"sentence": sentence, "moments": [match.to_dict() for match in matches]}
                for sentence, matches in zip(job.sentences, found, strict=True)
            ],
        }

    def _grounded(
        self, job: Ground, video_id: str, duration_s: float, found: list[list[Moment]], maps: Any
    ) -> dict[str, Any]:
        results: list[dict[str, Any]] = [
            {"sentence": sentence, "moments": [moment.to_dict() for moment in moments[: job.top_k]]}
            for sentence, moments in zip(job.sentences, found, strict=True)
        ]
        answer = {"video_id": video_id, "duration_s": float(duration_s), "results": results}
        if maps is not None:
            plan = plan_for(self._engine.preset)
            answer["map"] = {"num_clips": self._engine.preset.num_clips, "cells": plan.cells.tolist()}
            for result, scores in zip(results, maps, strict=True):
                result["scores"] = np.round(scores.astype(np.float64), 4).tolist()
        return answer


def _each(run: Callable[[Sequence[Any]], list[Any]], jobs: list[Any]) -> list[Any]:
    """Answer jobs together; if their call is refused, answer each alone, so that only the faulty ones are refused."""
    try:
        return run(jobs)
    except Exception as error:
        if len(jobs) > 1:
            return [answer for job in jobs for answer in _each(run, [job])]
        if isinstance(error, InputError):
            return [type(error)(_PLACE.sub("", str(error)))]
        _LOG.exception("a request failed")
        return [error]
