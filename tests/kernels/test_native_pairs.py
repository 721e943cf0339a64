"""top_moments_of_pairs gives the bits of one call of top_moments per pair, with every instruction set and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmn_fast import _C
from mmn_fast.kernels.cpu import ops
from tests.kernels.test_native_top_moments import embeddings, moments_of

_HOW: dict[str, Any] = {"fusion": "power", "power": 0.3, "iou_threshold": 0.5, "top_k": 7}


def _drawn(sentences: list[int], P: int, J: int = 40) -> tuple[list[tuple[np.ndarray, ...]], np.ndarray]:
    pairs = [tuple(embeddings(P, count, J, seed)) for seed, count in enumerate(sentences)]
    moments = np.stack([moments_of(P, seed) for seed in range(len(sentences))]) if pairs else np.empty((0, P, 2))
    return pairs, moments.astype(np.float32)


@pytest.mark.parametrize("isa", _C.available_cpu_isas())
@pytest.mark.parametrize(
    ("sentences", "P"),
    [([], 5), ([3], 136), ([1] * 16, 136), ([0, 1, 70, 0, 33, 2], 230), ([2, 1], 0), ([0, 0], 9), ([40, 1], 1104)],
)
def test_pairs_get_the_bits_of_single_calls(
    monkeypatch: pytest.MonkeyPatch, isa: str, sentences: list[int], P: int
) -> None:
    monkeypatch.setenv("MMN_FAST_CPU_ISA", isa)
    pairs, moments = _drawn(sentences, P)
    single = [ops.top_moments(*pair, spans, **_HOW, threads=1) for pair, spans in zip(pairs, moments, strict=True)]
    for threads in (1, 2, 5):
        cells, scores = ops.top_moments_of_pairs(pairs, moments, **_HOW, threads=threads)
        assert cells.tobytes() == b"".join(one.tobytes() for one, _ in single)
        assert scores.tobytes() == b"".join(one.tobytes() for _, one in single)
        assert cells.shape == scores.shape == (sum(sentences), 7)


def _with(pairs: list[tuple[np.ndarray, ...]], pair: int, argument: int, value: Any) -> list[tuple[Any, ...]]:
    changed: list[tuple[Any, ...]] = list(pairs)
    changed[pair] = (*pairs[pair][:argument], value, *pairs[pair][argument + 1 :])
    return changed


def test_pairs_that_cannot_be_scored_are_refused_in_a_sentence() -> None:
    pairs, moments = _drawn([1, 2, 1], 9, 8)
    other = embeddings(8, 1, 8)
    nan = np.full((2, 8), np.nan, np.float32)
    for wrong, spans, threads, error, message in (
        (_with(pairs, 1, 0, [1]), moments, 1, TypeError, "video_contrastive: expected a NumPy array, got list"),
        (_with(pairs, 1, 3, nan[:, :7]), moments, 1, ValueError, r"text_iou: expected C-contiguous float32 \[S, J\]"),
        ([*pairs[:2], tuple(other)], moments, 1, ValueError, "video_contrastive: expected 9 proposals as in moments"),
        (pairs, moments[:2], 1, ValueError, r"moments: expected float32 \[3, 9, 2\], got float32 \[2, 9, 2\]"),
        (pairs, np.full_like(moments, np.inf), 1, ValueError, "moments: expected finite seconds"),
        (_with(pairs, 1, 2, nan), moments, 1, ValueError, "expected no NaN score, got one for a sentence of pair 1"),
        (_with(pairs, 1, 2, nan), moments, 5, ValueError, "expected no NaN score, got one for sentence 0"),
    ):
        with pytest.raises(error, match=message):
            ops.top_moments_of_pairs(wrong, np.ascontiguousarray(spans), **_HOW, threads=threads)
