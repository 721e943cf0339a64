"""Static sizes and the cache of graphs; captures are counters."""

from __future__ import annotations

import numpy as np
import pytest

from mmn_fast.buckets import (
    QUERY_BUCKETS,
    TOKEN_BUCKETS,
    VIDEO_BUCKETS,
    bucket_for,
    padded_ids,
    padded_pairs,
    rows_for,
    split,
    tokens_for,
)
from mmn_fast.runtime.graph_cache import MIB, Captured, GraphCache


def test_the_smallest_bucket_that_holds_a_request_is_taken() -> None:
    assert [bucket_for(n, VIDEO_BUCKETS) for n in (1, 2, 3, 9, 33, 48, 49)] == [1, 2, 4, 16, 48, 48, None]
    assert [bucket_for(n, QUERY_BUCKETS) for n in (0, 1, 2, 33, 128, 129)] == [1, 1, 8, 128, 128, None]


@pytest.mark.parametrize("buckets", [VIDEO_BUCKETS, QUERY_BUCKETS, (1,)])
def test_pieces_cover_a_request_in_order_and_fit_their_buckets(buckets: tuple[int, ...]) -> None:
    for count in range(300):
        pieces = split(count, buckets)
        assert [n for p in pieces for n in range(p.first, p.first + p.size)] == list(range(count))
        assert all(p.bucket in buckets and 1 <= p.size <= p.bucket for p in pieces)
        assert len(pieces) == -(-count // buckets[-1])


def test_sentences_are_padded_to_a_bucket_and_never_beyond_the_encoder() -> None:
    assert [tokens_for(n, 512) for n in (1, 16, 17, 64, 65, 512)] == [16, 16, 32, 64, 128, 512]
    assert [tokens_for(n, 40) for n in (1, 33, 40)] == [16, 40, 40]
    assert TOKEN_BUCKETS[-1] == 64


def test_source_rows_get_a_bucket_and_beyond_the_largest_a_multiple_of_it() -> None:
    assert [rows_for(n) for n in (1, 64, 65, 16384, 16385, 50000)] == [64, 64, 256, 16384, 32768, 65536]


class _Captures:
    """Makes programs of given sizes; counts captures and releases."""

    def __init__(self, **mib: float) -> None:
        self.mib, self.made, self.released = mib, [], 0

    def capture(self, key: str) -> Captured:
        self.made.append(key)
        return Captured(lambda: key, int(self.mib[key] * MIB))

    def release(self) -> None:
        self.released += 1


def _get(cache: GraphCache, captures: _Captures, key: str) -> str | None:
    captured = cache.get(key, lambda: captures.capture(key))
    return None if captured is None else captured.run()


def test_a_program_is_captured_once() -> None:
    captures = _Captures(a=3, b=4)
    cache = GraphCache(10 * MIB, captures.release)
    assert [_get(cache, captures, key) for key in "abab"] == ["a", "b", "a", "b"]
    assert captures.made == ["a", "b"]
    assert cache.info() == {"graphs": 2, "graph_mib": 7.0, "max_graph_mib": 10.0, "graphs_too_large": {}}


def test_the_limit_releases_all_and_keeps_the_new_one() -> None:
    captures = _Captures(a=3, b=4, c=5)
    cache = GraphCache(10 * MIB, captures.release)
    for key in "abc":
        assert _get(cache, captures, key) == key
    assert captures.made == ["a", "b", "c", "c"]  # c was captured again, in the new pool
    assert (captures.released, cache.info()["graphs"], cache.num_bytes) == (1, 1, 5 * MIB)


def test_a_program_beyond_the_limit_runs_without_a_graph_and_is_named() -> None:
    captures = _Captures(a=3, large=11)
    cache = GraphCache(10 * MIB, captures.release)
    assert _get(cache, captures, "a") == "a"
    assert _get(cache, captures, "large") is None
    assert _get(cache, captures, "large") is None
    assert captures.made == ["a", "large", "large"]  # the second time alone in its own pool; then never again
    assert cache.info()["graphs_too_large"] == {"large": 11.0}
    assert cache.num_bytes == 0


def test_a_limit_of_zero_holds_programs_that_need_nothing_of_their_own() -> None:
    captures = _Captures(a=0, b=1)
    cache = GraphCache(0, captures.release)
    assert _get(cache, captures, "a") == "a"
    assert _get(cache, captures, "b") is None


def test_an_exception_in_a_capture_passes_through_and_leaves_nothing() -> None:
    cache = GraphCache(MIB, lambda: None)

    def fails() -> Captured:
        raise MemoryError("for a test")

    with pytest.raises(MemoryError, match="for a test"):
        cache.get("a", fails)
    assert cache.info()["graphs"] == 0
    captures = _Captures(a=1)
    assert _get(cache, captures, "a") == "a"


def test_buckets_are_padded_with_sentences_of_one_word_piece_and_pairs_of_no_video() -> None:
    ids, lengths = padded_ids([np.arange(1, 4), np.arange(1, 19)], 8, 512)
    assert (ids.shape, lengths.tolist()) == ((8, 32), [3, 18, *[1] * 6])
    assert ids[0].tolist() == [1, 2, 3, *[0] * 29]
    assert ids[1, :18].tolist() == list(range(1, 19))
    assert not ids[2:].any()
    numbers = np.arange(3, dtype=np.int32)
    videos, sentences, durations = padded_pairs(numbers, numbers, np.full(3, 2, np.float32))
    assert videos.tolist() == [0, 1, 2, *[-1] * 5]
    assert sentences.tolist() == [0, 1, 2, *[0] * 5]
    assert durations.tolist() == [*[2] * 3, *[1] * 5]  # padding is 1, so that nothing divides by 0
    assert [array.dtype for array in (videos, sentences, durations)] == [np.int32, np.int32, np.float32]
