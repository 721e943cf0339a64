"""Searches a state of an index: the best videos of every sentence by one pass over the shards, then their moments.

Why this is exact: a video's score is that of its best proposal, which no suppression removes. A moment of a video
outside a sentence's k best videos stands behind the best moments of k videos, so it is not among the k best moments,
whatever `per_video` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mmn_fast.arrays import Bool, Float32
from mmn_fast.backends.base import Branches, Selection
from mmn_fast.embeddings import TextEmbeddings
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.index.snapshot import Snapshot
from mmn_fast.kernels.cpu.search import BestVideos, search_moments
from mmn_fast.postprocess import match_moments
from mmn_fast.presets import Preset
from mmn_fast.types import Moment
from mmn_fast.windows.grounding import moments_of_video

_Ranked = tuple[float, int, int, Moment]  # what ranks a moment, and the moment


@dataclass(frozen=True, slots=True)
class Match:
    """A moment that a search found.

    Attributes:
        video_id: the video.
        start_s: start in the whole video, seconds.
        end_s: end in seconds.
        score: fused score, higher is better.
    """

    video_id: str
    start_s: float
    end_s: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        """All values, ready for `json.dumps`."""
        return {"video_id": self.video_id, "start_s": self.start_s, "end_s": self.end_s, "score": self.score}


class RankedVideo(NamedTuple):
    """A video that a search found.

    Attributes:
        video_id: the video.
        score: fused score of its best moment.
    """

    video_id: str
    score: float


@dataclass(frozen=True)
class CpuScorer:
    """Chooses moments with the C++ kernels, whatever backend has made the embeddings; bit for bit as backend "native".

    Attributes:
        preset: the model's conventions.
        threads: CPU threads; None takes the default.
    """

    preset: Preset
    threads: int | None = None

    def top_moments(self, video: Branches, text: Branches, moments: Float32, top_k: int) -> Selection:
        """As `Backend.top_moments`."""
        return match_moments(video, text, moments, self.preset, top_k, self.threads)


@dataclass(frozen=True)
class Wanted:
    """What a search returns.

    Attributes:
        top_k: most moments per sentence, >= 1.
        per_video: most moments of one video, >= 1.
        min_score: least score of a moment; None for any.
        threads: CPU threads; None takes the default.
        on: a `torch.device` that scores all proposals; None searches on the CPU.
    """

    top_k: int
    per_video: int = 1
    min_score: float | None = None
    threads: int | None = None
    on: Any = None


def best_videos(snapshot: Snapshot, text: TextEmbeddings, videos: Bool, wanted: Wanted) -> BestVideos:
    """The best videos of every sentence.

    Args:
        snapshot: the state to search.
        text: S sentences.
        videos: which videos to search, bool [videos].
        wanted: how many videos to find.

    Returns:
        Scores, numbers of videos and windows, and proposals, [S, k]; k is at most the number of searched videos.
    """
    k = min(wanted.top_k, int(np.count_nonzero(videos)))
    best = BestVideos.none(len(text), k, wanted.min_score)
    if k == 0 or len(text) == 0:
        return best
    preset, proposals = snapshot.manifest.preset, snapshot.manifest.num_proposals
    contrastive, iou = (np.ascontiguousarray(branch) for branch in (text.contrastive, text.iou))
    search = _search_op(wanted)
    for shard, local, windows, numbers in snapshot.blocks(videos):
        search(
            shard.rows,
            starts=local * proposals,
            videos=numbers,
            windows=windows,
            proposals=proposals,
            text_contrastive=contrastive,
            text_iou=iou,
            fusion=preset.score_fusion,
            power=preset.score_power,
            best=best,
        )
    return best


def _search_op(wanted: Wanted) -> Callable[..., None]:
    if wanted.on is None:
        return partial(search_moments, threads=wanted.threads)
    from mmn_fast.kernels.gpu.search import search_moments_on

    return partial(search_moments_on, wanted.on)


def rank_videos(snapshot: Snapshot, text: TextEmbeddings, videos: Bool, wanted: Wanted) -> list[list[RankedVideo]]:
    """The best videos of every sentence, best first; the arguments are those of `best_videos`."""
    best = best_videos(snapshot, text, videos, wanted)
    return [
        [
            RankedVideo(snapshot.video_id(number), score)
            for number, score in zip(numbers, scores, strict=True)
            if number >= 0 and _counts(score, wanted)
        ]
        for numbers, scores in zip(best.videos.tolist(), best.scores.tolist(), strict=True)
    ]


def find_moments(snapshot: Snapshot, text: TextEmbeddings, videos: Bool, wanted: Wanted) -> list[list[Match]]:
    """The best moments of every sentence, best first; the arguments are those of `best_videos`.

    Returns:
        Per sentence its moments; of equal scores the earlier video's in the index, then the better one of its video.
    """
    best = best_videos(snapshot, text, videos, wanted)
    if wanted.per_video == 1:
        return _best_of_each_video(snapshot, best, wanted)
    return _several_of_each_video(snapshot, text, best, wanted)


def _counts(score: float, wanted: Wanted) -> bool:
    """Whether a score makes a moment: 0 does not, as in `temporal_nms`."""
    return score != 0 and (wanted.min_score is None or score >= wanted.min_score)


def _best_of_each_video(snapshot: Snapshot, best: BestVideos, wanted: Wanted) -> list[list[Match]]:
    """The moments behind the best proposals, without scoring anything again."""
    preset = snapshot.manifest.preset
    sentences, ranks = np.nonzero(best.videos >= 0)
    numbers, windows = best.videos[sentences, ranks], best.windows[sentences, ranks]
    cut = snapshot.windows_per_video[numbers] > 1  # a video that was not cut is its own window
    durations_s = snapshot.durations_s[numbers]
    starts = np.where(cut, snapshot.spans_s[windows, 0], 0.0)
    lengths = np.where(cut, snapshot.spans_s[windows, 1], durations_s)
    cells = plan_for(preset).cells[best.cells[sentences, ranks]]
    spans = cells_to_moments(cells, lengths[:, None], preset.num_clips).astype(np.float64) + starts[:, None]
    spans[cut] = np.minimum(spans[cut], durations_s[cut, None])  # as `windows.merge.merged` ends moments
    found: list[list[Match]] = [[] for _ in best.videos]
    scores = best.scores[sentences, ranks].tolist()
    for sentence, number, (start, end), score in zip(
        sentences.tolist(), numbers.tolist(), spans.tolist(), scores, strict=True
    ):
        if _counts(score, wanted):
            found[sentence].append(Match(snapshot.video_id(number), start, end, score))
    return found


def _several_of_each_video(
    snapshot: Snapshot, text: TextEmbeddings, best: BestVideos, wanted: Wanted
) -> list[list[Match]]:
    """The moments of the best videos, which are decoded one after another and grounded as `Engine.score` does."""
    scorer, proposals = CpuScorer(snapshot.manifest.preset, wanted.threads), snapshot.manifest.num_proposals
    found: list[list[_Ranked]] = [[] for _ in best.videos]
    for number, sentences in _sentences_of_videos(best):
        shard, video = snapshot.place_of(number)
        moments = moments_of_video(
            scorer,
            shard.branches_of(video, proposals),
            (text.contrastive[sentences], text.iou[sentences]),
            shard.spans_of(video),
            float(shard.durations_s[video]),
            min(wanted.per_video, wanted.top_k),
        )
        for sentence, ranked in zip(sentences, moments, strict=True):
            found[sentence] += [
                (-moment.score, number, rank, moment)
                for rank, moment in enumerate(ranked)
                if _counts(moment.score, wanted)
            ]
            if len(found[sentence]) > 4 * wanted.top_k:  # memory of many sentences
                found[sentence] = _first(found[sentence], wanted.top_k)
    return [
        [
            Match(snapshot.video_id(number), moment.start_s, moment.end_s, moment.score)
            for _, number, _, moment in _first(ranked, wanted.top_k)
        ]
        for ranked in found
    ]


def _first(ranked: list[_Ranked], top_k: int) -> list[_Ranked]:
    """The best moments, by score, then the video's number, then the rank in its video."""
    return sorted(ranked, key=lambda one: one[:3])[:top_k]


def _sentences_of_videos(best: BestVideos) -> Iterable[tuple[int, list[int]]]:
    """Every video that is among the best of a sentence, in rising order, and the sentences that it is among."""
    sentences_of: dict[int, list[int]] = {}
    for sentence, numbers in enumerate(best.videos.tolist()):
        for number in numbers:
            if number >= 0:
                sentences_of.setdefault(number, []).append(sentence)
    return sorted(sentences_of.items())
