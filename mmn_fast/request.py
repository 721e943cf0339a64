"""A request: the sentences to ground and their videos, checked before any work, each distinct item held once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmn_fast.arrays import Float32, Int32, Int64
from mmn_fast.errors import InputError
from mmn_fast.features import check_duration
from mmn_fast.tokenizer import check_text
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
) -> Request:
    """Check queries and make a request from them.

    Args:
        batch: any number of queries.
        video_input: called once per array of features.
        tokenize: turns the distinct sentences into token ids.
        progress: as in `Request`.

    Raises:
        InputError: a query cannot be used; the message names the query and what is wrong with it.
    """
    queries = _check_batch(batch)
    arrays, numbers = distinct_videos([(f"batch[{n}].video", q.video) for n, q in enumerate(queries)], video_input)
    row_of_video: dict[int, int] = {}
    row_of_sentence: dict[str, int] = {}
    videos: list[int] = []
    sentences: list[int] = []
    durations: list[float] = []
    spans = []
    for query, number in zip(queries, numbers, strict=True):
        first, count = len(videos), len(query.sentences)
        if count:
            videos += [row_of_video.setdefault(number, len(row_of_video))] * count
            durations += [query.video.duration_s] * count
            sentences += [row_of_sentence.setdefault(text, len(row_of_sentence)) for text in query.sentences]
        spans.append(slice(first, first + count))
    return Request(
        [arrays[number] for number in row_of_video],
        tokenize(list(row_of_sentence)),
        Pairs(np.array(videos, np.int32), np.array(sentences, np.int32), np.array(durations, np.float32)),
        spans,
        progress,
    )


def distinct_videos(
    videos: Sequence[tuple[str, Video]], video_input: VideoInput
) -> tuple[Sequence[Float32], Sequence[int]]:
    """Check all videos before the first is encoded, and find equal ones.

    Args:
        videos: (name in messages, video) per video.
        video_input: called once per array of features.

    Returns:
        The array from `video_input` for each distinct video, and per given video the number of its array.

    Raises:
        InputError: a duration or features cannot be used.
    """
    arrays: list[Float32] = []
    number_of: dict[bytes, int] = {}
    number_at: dict[int, int] = {}
    # A hash of megabytes costs as much as a call on a GPU; one array needs none.
    single = len({id(video.features) for _, video in videos}) < 2
    for where, video in videos:
        check_duration(video.duration_s, f"{where}.duration_s")
        if id(video.features) not in number_at:
            array = video_input(video.features, f"{where}.features")
            key = b"" if single else hashlib.sha256(array.data).digest()
            if key not in number_of:
                number_of[key] = len(arrays)
                arrays.append(array)
            number_at[id(video.features)] = number_of[key]
    return arrays, [number_at[id(video.features)] for _, video in videos]


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


def _check_batch(batch: Iterable[Query]) -> list[Query]:
    if isinstance(batch, Query):
        raise InputError("batch: expected a list of Query, got one Query; put it in a list")
    queries = []
    for number, query in enumerate(listed(batch, "batch", "Query")):
        if not isinstance(query, Query):
            raise InputError(f"batch[{number}]: expected mmn_fast.Query, got {type(query).__name__}")
        video = _check_video(query.video, f"batch[{number}].video")
        queries.append(Query(video, check_sentences(query.sentences, f"batch[{number}].sentences")))
    return queries


def _check_video(video: Video, where: str) -> Video:
    if not isinstance(video, Video):
        raise InputError(f"{where}: expected mmn_fast.Video, got {type(video).__name__}")
    return video
