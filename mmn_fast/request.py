"""A request: the sentences to ground and their videos, checked before any work, each distinct item held once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmn_fast.arrays import Float32, Int32, Int64
from mmn_fast.checks import shown
from mmn_fast.errors import InputError
from mmn_fast.features import check_duration, tube_pre_clips
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.matching import refuse_other_features
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import check_text
from mmn_fast.tubes import Track, Tube, TubeQuery, check_track
from mmn_fast.types import Query, Video

# Most videos in a block. This bounds the memory of their embeddings; results do not depend on it.
VIDEOS_AT_ONCE = 16

VideoInput = Callable[[Any, str], Float32]
"""(features, their name in messages) -> the checked array that a backend encodes."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which sentences to ground in which videos.

    Attributes:
        videos: int32 [Q], numbers of videos.
        sentences: int32 [Q], numbers of sentences.
        durations: float32 [Q], the video's length in seconds.
    """

    videos: Int32
    sentences: Int32
    durations: Float32


class Block(NamedTuple):
    """Some of a request's videos and the queries about them.

    Attributes:
        videos: at most `VIDEOS_AT_ONCE` arrays.
        queries: (row in `videos`, number of the query) per query.
    """

    videos: Sequence[Float32]
    queries: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Request:
    """Checked queries; each distinct video and sentence occurs once.

    Attributes:
        videos: one array from `Backend.video_input` per distinct video that has sentences.
        token_ids: int64 [L_s] per distinct sentence, not padded.
        pairs: Q pairs of a video and a sentence, in the order of the queries.
        spans: per query its slice of the pairs; empty for a query without sentences.
        progress: whether to show a progress bar while blocks are worked on.
    """

    videos: Sequence[Float32]
    token_ids: Sequence[Int64]
    pairs: Pairs
    spans: Sequence[slice]
    progress: bool = False

    def blocks(self) -> Iterable[Block]:
        """Yield all videos in blocks; `progress` shows a bar on stderr if there are two blocks or more."""
        blocks = [
            Block(self.videos[first : first + VIDEOS_AT_ONCE], [])
            for first in range(0, len(self.videos), VIDEOS_AT_ONCE)
        ]
        for number, span in enumerate(self.spans):
            if span.start < span.stop:
                block, row = divmod(int(self.pairs.videos[span.start]), VIDEOS_AT_ONCE)
                blocks[block].queries.append((row, number))
        if not self.progress or len(blocks) < 2:
            return blocks
        from rich.console import Console
        from rich.progress import track

        return track(blocks, description="grounding", transient=True, console=Console(stderr=True))


def make_request(
    batch: Iterable[Query],
    video_input: VideoInput,
    tokenize: Callable[[Sequence[str]], Sequence[Int64]],
    progress: bool = False,
    contract: FeatureContract | None = None,
) -> Request:
    """Check queries and make a request from them.

    Args:
        batch: any number of queries.
        video_input: called once per array of features.
        tokenize: turns the distinct sentences into token ids.
        progress: as in `Request`.
        contract: as in `distinct_videos`.

    Raises:
        InputError: a query cannot be used; the message names the query and what is wrong with it.
    """
    queries = check_batch(batch)
    videos = [(f"batch[{n}].video", q.video) for n, q in enumerate(queries)]
    arrays, numbers = distinct_videos(videos, video_input, contract)
    asked = [(number, q.sentences, q.video.duration_s) for number, q in zip(numbers, queries, strict=True)]
    return _without_repetition(arrays, asked, tokenize, progress)


@dataclass(frozen=True, eq=False)
class TubeRequest:
    """Queries about the tubes of videos, without repetition.

    Attributes:
        request: every tube is a video of its own, and every tube of every query that has sentences a query of it, in
            their order; its videos are pre-clips, its durations mean nothing.
        tracks: per query frames and boxes of each tube, as `tubes.check_track` returns them.
        sentences: per query how many sentences it has.
    """

    request: Request
    tracks: Sequence[Sequence[Track]]
    sentences: Sequence[int]


def make_tube_request(
    batch: Iterable[TubeQuery],
    preset: Preset,
    tokenize: Callable[[Sequence[str]], Sequence[Int64]],
    progress: bool = False,
) -> TubeRequest:
    """Check queries about tubes and make them a request.

    Args:
        batch: any number of queries.
        preset: says what a tube's features must be.
        tokenize: turns the distinct sentences into token ids.
        progress: as in `Request`.

    Raises:
        InputError: a query cannot be used; the message names the query, the tube and its video.
    """
    queries = _check_tube_batch(batch)
    tracks, tubes = [], []
    for n, query in enumerate(queries):
        checked, named = check_tubes(query.tubes, f"batch[{n}].tubes", query.video_id)
        tracks.append(checked)
        tubes += named
    arrays, numbers = distinct_tubes(tubes, preset)
    number_of, asked = iter(numbers), []
    for query in queries:
        asked += [(next(number_of), query.sentences, 1.0) for _ in query.tubes]
    request = _without_repetition(arrays, asked, tokenize, progress)
    return TubeRequest(request, tracks, [len(query.sentences) for query in queries])


def check_tubes(tubes: Iterable[Tube], where: str, video_id: str = "") -> tuple[list[Track], list[tuple[str, Tube]]]:
    """Check the frames and boxes of a video's tubes.

    Args:
        tubes: any number of tubes.
        where: their name in messages.
        video_id: the video's, for messages.

    Returns:
        Frames and boxes of each tube, and each tube with its name in messages.

    Raises:
        InputError: no list, an entry is no `Tube`, or frames and boxes are no track.
    """
    tracks, named = [], []
    for number, tube in enumerate(listed(tubes, where, "Tube")):
        name = f"{where}[{number}]" + (f" (video {shown(video_id)})" if video_id else "")
        if not isinstance(tube, Tube):
            raise InputError(f"{name}: expected mmn_fast.Tube, got {type(tube).__name__}")
        tracks.append(check_track(tube.frames, tube.boxes, name))
        named.append((name, tube))
    return tracks, named


def distinct_tubes(tubes: Sequence[tuple[str, Tube]], preset: Preset) -> tuple[Sequence[Float32], Sequence[int]]:
    """The pre-clips of tubes, checked, and those that are equal found, as `distinct_videos` does."""
    return _distinct(tubes, lambda tube, name: tube_pre_clips(tube, preset, name))


def _without_repetition(
    arrays: Sequence[Float32],
    asked: Sequence[tuple[int, Sequence[str], float]],
    tokenize: Callable[[Sequence[str]], Sequence[Int64]],
    progress: bool,
) -> Request:
    """A request of queries: number of the video's array, sentences, and duration in seconds."""
    row_of_video: dict[int, int] = {}
    row_of_sentence: dict[str, int] = {}
    videos: list[int] = []
    sentences: list[int] = []
    durations: list[float] = []
    spans = []
    for number, spoken, duration_s in asked:
        first, count = len(videos), len(spoken)
        if count:
            videos += [row_of_video.setdefault(number, len(row_of_video))] * count
            durations += [duration_s] * count
            sentences += [row_of_sentence.setdefault(text, len(row_of_sentence)) for text in spoken]
        spans.append(slice(first, first + count))
    return Request(
        [arrays[number] for number in row_of_video],
        tokenize(list(row_of_sentence)),
        Pairs(np.array(videos, np.int32), np.array(sentences, np.int32), np.array(durations, np.float32)),
        spans,
        progress,
    )


def distinct_videos(
    videos: Sequence[tuple[str, Video]], video_input: VideoInput, contract: FeatureContract | None = None
) -> tuple[Sequence[Float32], Sequence[int]]:
    """Check all videos before the first is encoded, and find equal ones.

    Args:
        videos: (name in messages, video) per video.
        video_input: called once per array of features.
        contract: how the model's features are made; None takes all features.

    Returns:
        The array from `video_input` for each distinct video, and per given video the number of its array.

    Raises:
        InputError: a duration or features cannot be used, or features have another contract.
    """
    check_facts(videos, contract)
    return _distinct([(f"{where}.features", video.features) for where, video in videos], video_input)


def check_facts(videos: Sequence[tuple[str, Video]], contract: FeatureContract | None) -> None:
    """Check all that is known of videos besides their features.

    Args:
        videos: (name in messages, video) per video.
        contract: how the model's features are made; None takes all features.

    Raises:
        InputError: a duration cannot be used, or features have another contract.
    """
    for where, video in videos:
        check_duration(video.duration_s, f"{where}.duration_s")
        refuse_other_features(contract, video.contract, where)


def _distinct(
    items: Sequence[tuple[str, Any]], make: Callable[[Any, str], Float32]
) -> tuple[Sequence[Float32], Sequence[int]]:
    """Arrays made of named items without repetition, and per item the number of its own; `make` checks, too."""
    arrays: list[Float32] = []
    number_of: dict[bytes, int] = {}
    number_at: dict[int, int] = {}
    # A hash of megabytes costs as much as a call on a GPU; one array needs none.
    single = len({id(item) for _, item in items}) < 2
    for name, item in items:
        if id(item) not in number_at:
            array = make(item, name)
            key = b"" if single else hashlib.sha256(array.data).digest()
            if key not in number_of:
                number_of[key] = len(arrays)
                arrays.append(array)
            number_at[id(item)] = number_of[key]
    return arrays, [number_at[id(item)] for _, item in items]


def listed(items: Iterable[Any], where: str, expected: str) -> list[Any]:
    """The items of a list or of another ordered iterable.

    Raises:
        InputError: `items` is text, a mapping, a set, or not iterable.
    """
    if isinstance(items, (str, bytes, Mapping, Set)) or not isinstance(items, Iterable):
        raise InputError(f"{where}: expected a list of {expected}, got {type(items).__name__}")
    return list(items)


def check_videos(videos: Iterable[Video]) -> list[Video]:
    """The videos as a list.

    Raises:
        InputError: `videos` is no list, or an entry is no `Video`.
    """
    return [_check_video(video, f"videos[{number}]") for number, video in enumerate(listed(videos, "videos", "Video"))]


def check_sentences(sentences: Sequence[str], where: str = "sentences") -> list[str]:
    """The sentences as a list.

    Raises:
        InputError: `sentences` is no list, or an entry is no text.
    """
    if isinstance(sentences, str):
        raise InputError(f"{where}: expected a list of str, got one str; put it in a list")
    checked = listed(sentences, where, "str")
    check_text(checked, where)
    return checked


def check_sizes(**sizes: Sequence[int]) -> None:
    """Refuse sizes of `Engine.warmup` that are no whole numbers >= 1.

    Raises:
        InputError: a size is no whole number >= 1; the message names the argument.
    """
    for name, numbers in sizes.items():
        for size in listed(numbers, name, "integers >= 1"):
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
                raise InputError(f"{name}: expected integers >= 1, got {size!r}")


def check_top_k(top_k: int) -> int:
    """The wanted number of moments per sentence, as an int.

    Raises:
        InputError: `top_k` is no whole number >= 1.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise InputError(f"top_k: expected an integer >= 1, got {top_k!r}")
    return int(top_k)


def check_batch(batch: Iterable[Query]) -> list[Query]:
    """The queries of a batch, their sentences as lists.

    Raises:
        InputError: the batch is no list, an entry is no `Query`, or a query has no video or no texts.
    """
    queries = []
    for number, query in enumerate(_queries(batch, Query, TubeQuery, "ground_tubes")):
        video = _check_video(query.video, f"batch[{number}].video")
        queries.append(Query(video, check_sentences(query.sentences, f"batch[{number}].sentences")))
    return queries


def _check_tube_batch(batch: Iterable[TubeQuery]) -> list[TubeQuery]:
    queries = []
    for number, query in enumerate(_queries(batch, TubeQuery, Query, "ground")):
        tubes = listed(query.tubes, f"batch[{number}].tubes", "Tube")
        sentences = check_sentences(query.sentences, f"batch[{number}].sentences")
        queries.append(TubeQuery(tubes, sentences, query.video_id))
    return queries


def _queries(batch: Iterable[Any], kind: type, other: type, its_call: str) -> list[Any]:
    """The queries of a batch, all of one kind; `its_call` takes those of the other."""
    if isinstance(batch, kind):
        raise InputError(f"batch: expected a list of {kind.__name__}, got one {kind.__name__}; put it in a list")
    queries = listed(batch, "batch", kind.__name__)
    for number, query in enumerate(queries):
        if not isinstance(query, kind):
            hint = f"; Engine.{its_call} takes it" if isinstance(query, other) else ""
            raise InputError(f"batch[{number}]: expected mmn_fast.{kind.__name__}, got {type(query).__name__}{hint}")
    return queries


def _check_video(video: Video, where: str) -> Video:
    if not isinstance(video, Video):
        raise InputError(f"{where}: expected mmn_fast.Video, got {type(video).__name__}")
    return video
