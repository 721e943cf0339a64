"""The search on a device, here on the operators' twins: the CPU's videos, windows and cells, scores within rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmn_fast.kernels.cpu.search import BestVideos
from mmn_fast.kernels.gpu import search
from tests.kernels.test_search_moments import Library
from tests.tolerances import check_close


def on(device: str, library: Library, best: BestVideos, chosen: Any = slice(None), **options: Any) -> BestVideos:
    options = {"fusion": "power", "power": 0.5} | options
    which = map(np.ascontiguousarray, (library.starts[chosen], library.videos[chosen], library.windows[chosen]))
    search.search_moments_on(torch.device(device), library.rows, *which, library.P, *library.text, best=best, **options)
    return best


def same(found: BestVideos, expected: BestVideos) -> None:
    there = np.isfinite(expected.scores)
    check_close(found.scores[there], expected.scores[there], "gpu_fused", what="scores")
    assert (found.scores[~there] == -np.inf).all()
    for name in ("videos", "windows", "cells"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("fusion", "power"), [("power", 0.5), ("power", 0.3), ("product", 0.5)])
def test_it_finds_what_the_cpu_finds(device: str, storage: str, fusion: str, power: float) -> None:
    library = Library(3, 12, 9, 32, 3, storage)
    options: dict[str, Any] = {"fusion": fusion, "power": power}
    for k in (1, 5, 20):
        expected = library.search(BestVideos.none(3, k), **options)
        same(on(device, library, BestVideos.none(3, k), **options), expected)


@pytest.mark.parametrize("at_once", [1, 3 * 9 * 3, 7 * 9 * 3])
def test_parts_and_shards_do_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(4, 15, 9, 32, 3, "fp16")
    expected = library.search(BestVideos.none(3, 6))
    monkeypatch.setattr(search, "_SCORES_AT_ONCE", at_once)
    best = BestVideos.none(3, 6)
    for part in (2, 0, 1):
        on("cpu", library, best, library.videos // 5 == part)
    same(best, expected)


def test_windows_that_are_left_out_and_the_least_score() -> None:
    library = Library(5, 15, 9, 32, 2, "fp16")
    kept = library.videos % 3 != 1
    least = float(np.median(library.search(BestVideos.none(2, 15)).scores))
    expected = library.search(BestVideos.none(2, 15, least), kept)
    assert (expected.videos == -1).any()
    same(on("cpu", library, BestVideos.none(2, 15, least), kept), expected)


def test_no_windows_and_no_sentences() -> None:
    library = Library(6, 3, 4, 8, 2, "fp16")
    assert (on("cpu", library, BestVideos.none(2, 3), slice(0, 0)).videos == -1).all()
    on("cpu", Library(6, 3, 4, 8, 0, "fp16"), BestVideos.none(0, 3))
