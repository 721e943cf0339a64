"""Static sizes: chooses the size for a request, splits and pads the request. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmn_fast.arrays import Float32, Int32, Int64

VIDEO_BUCKETS = (1, 2, 4, 8, 16, 32, 48)
QUERY_BUCKETS = (1, 8, 32, 128)
TOKEN_BUCKETS = (16, 32, 64)
# Source rows of all videos of a request. A bucket can have up to four times the given rows: the device reads the extra
# rows, but they are not copied to it. With finer buckets, a video slightly longer than the last would cost a capture.
ROW_BUCKETS = (64, 256, 1024, 4096, 16384)


class Piece(NamedTuple):
    """Items first to first + size - 1 of a request, run at the static size `bucket` >= size."""

    first: int
    size: int
    bucket: int


def bucket_for(count: int, buckets: Sequence[int]) -> int | None:
    """The smallest of the ascending `buckets` that holds `count`; None if all are too small."""
    return next((bucket for bucket in buckets if count <= bucket), None)


def split(count: int, buckets: Sequence[int]) -> list[Piece]:
    """Cut a request into pieces of the largest bucket and one rest in the smallest bucket that holds it.

    Args:
        count: items, >= 0.
        buckets: ascending.

    Returns:
        Consecutive pieces.
    """
    pieces, first = [], 0
    while first < count:
        size = min(count - first, buckets[-1])
        pieces.append(Piece(first, size, bucket_for(size, buckets) or buckets[-1]))
        first += size
    return pieces


def tokens_for(length: int, max_tokens: int) -> int:
    """Padded length of a sentence: a token bucket, or a multiple of the largest bucket; at most `max_tokens`."""
    return min(_static(length, TOKEN_BUCKETS), max_tokens)


def rows_for(count: int) -> int:
    """Static number of source rows that holds `count`: a row bucket, or a multiple of the largest bucket."""
    return _static(count, ROW_BUCKETS)


def _static(count: int, buckets: Sequence[int]) -> int:
    return bucket_for(count, buckets) or -(-count // buckets[-1]) * buckets[-1]


def padded_ids(token_ids: Sequence[Int64], bucket: int, max_tokens: int) -> tuple[Int64, Int64]:
    """Pad sentences to one array; filler sentences are one word piece long.

    Args:
        token_ids: int64 [L_s] per sentence, at most `bucket` sentences.
        bucket: S.
        max_tokens: the encoder's limit.

    Returns:
        int64 [S, L], where L is `tokens_for` the longest sentence, and the lengths, int64 [S].
    """
    ids = np.zeros((bucket, tokens_for(max(map(len, token_ids)), max_tokens)), np.int64)
    lengths = np.ones(bucket, np.int64)
    for row, sentence in enumerate(token_ids):
        ids[row, : len(sentence)] = sentence
        lengths[row] = len(sentence)
    return ids, lengths


def padded_pairs(videos: Int32, sentences: Int32, durations: Float32) -> tuple[Int32, Int32, Float32]:
    """Pad pairs to the size of a query bucket; filler pairs have video -1, which scores nothing.

    Args:
        videos: int32 [Q], at most the largest bucket.
        sentences: int32 [Q].
        durations: float32 [Q], seconds.

    Returns:
        The three arrays at the bucket's size.
    """
    fill = (0, split(len(videos), QUERY_BUCKETS)[0].bucket - len(videos))
    return (
        np.pad(videos, fill, constant_values=-1),
        np.pad(sentences, fill),
        np.pad(durations, fill, constant_values=1),
    )
