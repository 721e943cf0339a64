"""search_moments finds the same videos, cells and scores, bit for bit, as top_moments over every video and a sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmn_fast import _C
from mmn_fast.arrays import Float32
from mmn_fast.kernels.cpu.search import BestVideos, StoredRows, longest, quantise, search_moments

ISAS = _C.available_cpu_isas()
STORAGES = ["fp32", "fp16", "int8"]


def unit(rng: np.random.Generator, *shape: int) -> Float32:
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def stored(contrastive: Float32, iou: Float32, storage: str) -> StoredRows:
    if storage != "fp32":
        contrastive, iou = (np.ascontiguousarray(x, np.float16) for x in (contrastive, iou))  # type: ignore[assignment]
    norm = max(longest(contrastive), longest(iou))
    if storage != "int8":
        return StoredRows(contrastive, iou, norm)
    return StoredRows(contrastive, iou, norm, quantise(contrastive), quantise(iou))


class Library:
    """Random videos of one to three windows; every third window points at the sentences."""

    def __init__(self, seed: int, num_videos: int, P: int, J: int, sentences: int, storage: str) -> None:
        rng = np.random.default_rng(seed)
        self.text = unit(rng, sentences, J), unit(rng, sentences, J)
        self.P = P
        counts = rng.integers(1, 4, num_videos)
        self.videos = np.repeat(np.arange(num_videos), counts).astype(np.int64)
        self.windows = np.arange(len(self.videos), dtype=np.int64)
        rows = len(self.videos) * P
        branches = [unit(rng, rows, J), unit(rng, rows, J)]
        if sentences:
            for place in range(0, rows, 3):
                s = place % sentences
                for branch, text in zip(branches, self.text, strict=True):
                    mixed = branch[place] + rng.uniform(0, 2) * text[s]
                    branch[place] = mixed / np.linalg.norm(mixed)
        self.rows = stored(branches[0], branches[1], storage)
        self.starts = self.windows * P

    def search(self, best: BestVideos, chosen: Any = slice(None), **options: Any) -> BestVideos:
        options = {"fusion": "power", "power": 0.5, "threads": 2} | options
        which = (self.starts[chosen], self.videos[chosen], self.windows[chosen])
        search_moments(self.rows, *map(np.ascontiguousarray, which), self.P, *self.text, best=best, **options)
        return best

    def brute_force(self, k: int, isa: str, fusion: str = "power", power: float = 0.5, **_: Any) -> BestVideos:
        """top_moments over every window, then a stable sort by score."""
        S = len(self.text[0])
        best = BestVideos.none(S, k)
        moments = np.tile(np.float32([[0, 1]]), (self.P, 1))  # suppression does not touch the best moment
        found: list[dict[int, tuple[float, int, int]]] = [{} for _ in range(S)]
        for start, video, window in zip(self.starts, self.videos, self.windows, strict=True):
            decoded = [
                np.ascontiguousarray(x[start : start + self.P], np.float32)
                for x in (self.rows.contrastive, self.rows.iou)
            ]
            cells, scores = np.empty((S, 1), np.int32), np.empty((S, 1), np.float32)
            _C.top_moments(
                *decoded, *self.text, moments, fusion, power, 1.0, 1, cells=cells, scores=scores, threads=1, isa=isa
            )
            for s in range(S):
                score, cell = float(scores[s, 0]), int(cells[s, 0])
                if cell >= 0 and (video not in found[s] or score > found[s][video][0]):
                    found[s][int(video)] = score, int(window), cell
        for s in range(S):
            ranked = sorted(found[s].items(), key=lambda item: -item[1][0])[:k]
            for place, (video, (score, window, cell)) in enumerate(ranked):
                best.scores[s, place], best.videos[s, place] = score, video
                best.windows[s, place], best.cells[s, place] = window, cell
        return best


def same(found: BestVideos, expected: BestVideos) -> None:
    for name in ("videos", "windows", "cells", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("sentences", "J"), [(1, 256), (2, 24), (3, 40), (70, 256), (9, 7)])
def test_it_finds_what_brute_force_finds(isa: str, storage: str, sentences: int, J: int) -> None:
    library = Library(sentences, 40, 23, J, sentences, storage)
    for k in (1, 7, 50):
        expected = library.brute_force(k, isa)
        for threads in (1, 2):
            same(library.search(BestVideos.none(sentences, k), isa=isa, threads=threads), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sentences", [1, 3])
def test_very_long_vectors_are_exact_too(isa: str, sentences: int) -> None:
    """Codes of so many values can be longer than their row, and 16-bit sentences would overflow 32-bit sums."""
    library = Library(12, 4, 3, 70_001, sentences, "int8")
    same(library.search(BestVideos.none(sentences, 3), isa=isa), library.brute_force(3, isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("fusion", "power"), [("product", 0.5), ("power", 0.3), ("power", 0.0), ("power", -0.5)])
def test_every_fusion_is_exact(isa: str, storage: str, fusion: str, power: float) -> None:
    library = Library(5, 30, 60, 64, 5, storage)
    options: dict[str, Any] = {"fusion": fusion, "power": power, "isa": isa}
    same(library.search(BestVideos.none(5, 6), **options), library.brute_force(6, **options))


@pytest.mark.parametrize("storage", STORAGES)
def test_shards_in_any_order_give_the_librarys_best(storage: str) -> None:
    library = Library(6, 30, 16, 32, 4, storage)
    whole = library.search(BestVideos.none(4, 8))
    for order in ([0, 1, 2], [2, 0, 1]):
        best = BestVideos.none(4, 8)
        for part in order:
            library.search(best, library.videos // 10 == part)
        same(best, whole)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sentences", [3, 9])
def test_near_ties_of_adversarial_rows_are_told_apart(isa: str, storage: str, sentences: int) -> None:
    """Rows differ by less than the codes' and the rough product's errors; equal rows are ranked by their numbers."""
    rng = np.random.default_rng(0)
    library = Library(7, 60, 12, 128, sentences, storage)
    base = [unit(rng, 1, 128), unit(rng, 1, 128)]
    shape = (len(library.starts) * 12, 128)
    near = [b + rng.integers(-2, 3, shape) * np.float32(2**-13) for b in base]
    near[1][rng.random(len(near[1])) < 0.3] = base[1]
    library.rows = stored(near[0].astype(np.float32), near[1].astype(np.float32), storage)
    library.text = tuple(b + rng.standard_normal((sentences, 128)).astype(np.float32) * 0.01 for b in base)  # type: ignore[assignment]
    for k in (1, 10, 60):
        same(library.search(BestVideos.none(sentences, k), isa=isa), library.brute_force(k, isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sentences", [1, 9])
def test_codes_that_say_nothing_hide_no_video(isa: str, sentences: int) -> None:
    """One large coordinate makes all others round to 0, and only they matter to the sentences."""
    rng = np.random.default_rng(3)
    library = Library(12, 40, 14, 64, sentences, "int8")
    branches = [rng.uniform(-0.003, 0.003, library.rows.iou.shape).astype(np.float32) for _ in range(2)]
    for branch, text in zip(branches, library.text, strict=True):
        branch[:, 0] = 0.95
        text[:, 0] = 0
    library.rows = stored(branches[0], branches[1], "int8")
    assert library.rows.iou_codes is not None
    assert not library.rows.iou_codes.codes[:, 1:].any()
    for k in (1, 7):
        same(library.search(BestVideos.none(sentences, k), isa=isa), library.brute_force(k, isa))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sentences", [1, 9])
def test_of_equal_rows_the_first_is_found(storage: str, sentences: int) -> None:
    """Rows of a window are not read in their order."""
    rng = np.random.default_rng(4)
    for P in (1, 2, 5, 57):
        library = Library(13, 6, P, 32, sentences, storage)
        library.rows = stored(*(np.repeat(unit(rng, 1, 32), len(library.starts) * P, 0) for _ in range(2)), storage)
        for isa in ISAS:
            best = library.search(BestVideos.none(sentences, 6), isa=isa)
            assert (best.cells == 0).all()
            same(best, library.brute_force(6, isa))


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_need_not_have_unit_norm(storage: str) -> None:
    library = Library(8, 25, 9, 48, 4, "fp32")
    rng = np.random.default_rng(1)
    scaled = [
        x * rng.uniform(0, 3, (len(x), 1)).astype(np.float32) for x in (library.rows.contrastive, library.rows.iou)
    ]
    library.rows = stored(scaled[0], scaled[1], storage)
    for fusion in ("power", "product"):
        same(
            library.search(BestVideos.none(4, 5), fusion=fusion),
            library.brute_force(5, _C.available_cpu_isas()[-1], fusion=fusion),
        )


@pytest.mark.slow
def test_halves_of_every_kind_are_decoded_exactly() -> None:
    """Every finite half, subnormal ones and both zeros included, as a row of the iou branch: u is its value."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values) & (np.abs(values) < 8)]
    iou = np.zeros((len(values), 16), np.float16)
    iou[:, 3] = values
    contrastive = np.zeros_like(iou)
    contrastive[:, 0] = 1
    text = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    text[0][0, 0] = text[1][0, 3] = 1
    numbers = np.arange(len(values), dtype=np.int64)
    for isa in ISAS:
        best = BestVideos.none(1, len(values))
        options: dict[str, Any] = {"fusion": "power", "power": 0.5, "best": best, "isa": isa}
        search_moments(StoredRows(contrastive, iou, 8.0), numbers, numbers, numbers, 1, *text, **options)
        cells, scores = np.empty((1, len(values)), np.int32), np.empty((1, len(values)), np.float32)
        moments = np.stack([np.arange(len(values)), np.arange(len(values)) + 0.5], axis=1).astype(np.float32)
        rows = contrastive.astype(np.float32), iou.astype(np.float32)
        _C.top_moments(
            *rows, *text, moments, "power", 0.5, 1.0, len(values), cells=cells, scores=scores, threads=1, isa=isa
        )
        np.testing.assert_array_equal(best.scores, scores)
        np.testing.assert_array_equal(best.videos, cells)


def test_scores_below_the_least_do_not_count() -> None:
    library = Library(9, 20, 11, 32, 3, "fp16")
    every = library.search(BestVideos.none(3, 20))
    least = float(every.scores[:, 4].max())
    some = library.search(BestVideos.none(3, 20, min_score=least))
    for s in range(3):
        kept = every.scores[s] >= np.float32(least)
        np.testing.assert_array_equal(some.videos[s][: kept.sum()], every.videos[s][kept])
        assert (some.videos[s][kept.sum() :] == -1).all()


def test_an_empty_library_and_no_sentences() -> None:
    library = Library(10, 3, 4, 8, 2, "fp16")
    best = library.search(BestVideos.none(2, 3), slice(0, 0))
    assert (best.videos == -1).all()
    assert (best.scores == -np.inf).all()
    Library(10, 3, 4, 8, 0, "int8").search(BestVideos.none(0, 3))


def test_codes_are_within_their_errors() -> None:
    rng = np.random.default_rng(2)
    rows = np.concatenate([unit(rng, 500, 33), np.zeros((1, 33), np.float32), np.full((1, 33), 1e-30, np.float32)])
    codes, steps = quantise(rows)
    distance = np.linalg.norm(rows.astype(np.float64) - steps[:, :1].astype(np.float64) * codes, axis=1)
    assert (distance <= steps[:, 1]).all()
    assert (steps[:500, 1] < 0.02).all()
    assert (np.abs(codes) <= 127).all()
    assert longest(rows) >= np.linalg.norm(rows.astype(np.float64), axis=1).max()


def test_bad_arguments_are_refused() -> None:
    library = Library(11, 3, 4, 8, 2, "int8")
    rows = library.rows

    def message(**changes: Any) -> str:
        options: dict[str, Any] = {"starts": library.starts, "videos": library.videos, "windows": library.windows}
        options |= {"rows": rows, "proposals": 4, "text_contrastive": library.text[0], "text_iou": library.text[1]}
        options |= {"fusion": "power", "power": 0.5, "best": BestVideos.none(2, 3), "threads": 1} | changes
        with pytest.raises((TypeError, ValueError)) as refused:
            search_moments(**options)
        return str(refused.value)

    assert "starts: expected 4 of" in message(starts=library.starts + 1)
    assert "window_videos: expected rising numbers" in message(videos=library.videos[::-1].copy())
    assert "window_numbers: expected strictly rising" in message(windows=library.windows * 0)
    assert "contrastive: expected float16 [R, J], got float32" in message(
        rows=StoredRows(rows.contrastive.astype(np.float32), rows.iou, 1.0)
    )
    assert "codes: expected those of both branches, or of none" in message(
        rows=StoredRows(rows.contrastive, rows.iou, 1.0, None, rows.iou_codes)
    )
    assert rows.iou_codes is not None
    short = rows.iou_codes._replace(steps=rows.iou_codes.steps[1:])
    assert "contrastive_codes.steps: expected float32 [" in message(
        rows=StoredRows(rows.contrastive, rows.iou, 1.0, short, rows.iou_codes)
    )
    assert "norm: expected a number from 0, got nan" in message(rows=StoredRows(rows.contrastive, rows.iou, np.nan))
    assert "text_iou: expected float32 [2, 8], got float32 [2, 7]" in message(text_iou=library.text[1][:, :7].copy())
    assert "fusion: expected power or product, got 'sum'" in message(fusion="sum")
    assert "rows: expected no NaN score, got one" in message(text_iou=library.text[1] * np.nan)
    assert "scores: expected room for at least one video" in message(best=BestVideos.none(2, 0))
