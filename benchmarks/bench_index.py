"""Times the search of a library of videos beside PyTorch's brute force and FAISS, and beside the machine's copy.

    python -m benchmarks.bench_index [--videos 1000] [--proposals 1104] [--threads 2] [--repeats 5] [--sentences 1 64]

Random unit vectors, ten videos per sentence. PyTorch multiplies both branches in float32, fuses, takes the ten best
videos and keeps their moments by suppression; FAISS's IndexFlatIP searches one branch, with neither fusion nor
suppression (extra `bench`; left out, and said so, without it). The ways take turns. The error is the largest difference
of our scores from float64 for the moments found. `--growth` times libraries of 2,000 and 10,000 videos in int8 instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.timing import alternate, record
from mmn_fast.arrays import Float32
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.kernels import reference
from mmn_fast.kernels.cpu.search import BestVideos, Codes, StoredRows, quantise, search_moments
from mmn_fast.presets import PRESETS

_J, _K, _NORM = 256, 10, 1.001  # halves of unit vectors are at most 2^-11 longer
_PRESET = PRESETS["activitynet-captions"]
_COPIED = 2**28  # bytes


def unit(rng: np.random.Generator, rows: int) -> Float32:
    """Random vectors of unit length, float32 [rows, 256]."""
    vectors = rng.standard_normal((rows, _J), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Library:
    """Random videos in half precision."""

    contrastive: np.ndarray
    iou: np.ndarray
    proposals: int

    @classmethod
    def drawn(cls, videos: int, proposals: int) -> Library:
        """Draw the vectors, one video at a time."""
        rng = np.random.default_rng(0)
        branches = [np.empty((videos * proposals, _J), np.float16) for _ in range(2)]
        for first in range(0, videos * proposals, proposals):
            for branch in branches:
                branch[first : first + proposals] = unit(rng, proposals)
        return cls(branches[0], branches[1], proposals)

    @property
    def videos(self) -> int:
        """Number of videos."""
        return len(self.iou) // self.proposals

    def search(self, rows: StoredRows, text: list[Float32], threads: int) -> BestVideos:
        """Search with mmn_fast."""
        best, numbers = BestVideos.none(len(text[0]), _K), np.arange(self.videos, dtype=np.int64)
        where = (numbers * self.proposals, numbers, numbers, self.proposals)
        search_moments(rows, *where, *text, fusion="power", power=0.5, best=best, threads=threads)
        return best


def brute_force(library: Library, text: list[Float32], threads: int) -> Callable[[], object]:
    """PyTorch in float32: both branches, fusion, suppression within each video, the ten best moments of all."""
    torch.set_num_threads(threads)
    rows = [torch.from_numpy(branch.astype(np.float32)) for branch in (library.contrastive, library.iou)]
    sentences = [torch.from_numpy(branch) for branch in text]
    moments = torch.from_numpy(cells_to_moments(plan_for(_PRESET).cells, 30.0, _PRESET.num_clips))[: library.proposals]

    def run() -> object:
        found = []
        for first in range(0, len(text[0]), 16):  # 64 sentences at once would take gigabytes
            c, u = (s[first : first + 16] @ r.T for s, r in zip(sentences, rows, strict=True))
            fused = c.mul_(0.5).add_(0.5).clamp_(min=0).sqrt_().mul_(u.mul_(10).sigmoid_())
            fused = fused.view(-1, library.videos, library.proposals)
            best = fused.amax(-1).topk(_K).indices  # ten videos hold the ten best moments
            for scores, videos in zip(fused, best, strict=True):
                kept = reference.temporal_nms(scores[videos], moments, _PRESET.nms_iou, 1)
                found.append(scores[videos].gather(1, kept).flatten())
        return found

    return run


def faiss_search(library: Library, text: list[Float32], threads: int) -> Callable[[], object] | None:
    """FAISS's exact inner product on the iou branch; None without faiss."""
    try:
        import faiss
    except ImportError:
        print("FAISS is not installed and is left out (pip install faiss-cpu)")
        return None
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(_J)
    for first in range(0, len(library.iou), 2**16):
        index.add(library.iou[first : first + 2**16].astype(np.float32))
    return lambda: index.search(text[1], _K)


def copy_block(threads: int) -> Callable[[], object]:
    """Copy a block of memory with PyTorch's threads: the machine's bandwidth."""
    torch.set_num_threads(threads)
    source, target = torch.ones(_COPIED, dtype=torch.uint8), torch.empty(_COPIED, dtype=torch.uint8)
    return lambda: target.copy_(source)


def error_of(library: Library, text: list[Float32], best: BestVideos) -> float:
    """Largest difference of the found scores from float64."""
    largest = 0.0
    for s in range(len(text[0])):
        rows = best.videos[s] * library.proposals + best.cells[s]
        c = library.contrastive[rows].astype(np.float64) @ text[0][s].astype(np.float64)
        u = library.iou[rows].astype(np.float64) @ text[1][s].astype(np.float64)
        largest = max(largest, float(np.abs(np.sqrt(0.5 * c + 0.5) / (1 + np.exp(-10 * u)) - best.scores[s]).max()))
    return largest


def bench(options: argparse.Namespace) -> None:
    """Measure every number of sentences and record its line."""
    library, rng = Library.drawn(options.videos, options.proposals), np.random.default_rng(1)
    branches = library.contrastive, library.iou
    half = StoredRows(*branches, _NORM)
    coded = StoredRows(*branches, _NORM, *map(quantise, branches))
    for sentences in options.sentences:
        text = [unit(rng, sentences), unit(rng, sentences)]
        ways: dict[str, Callable[[], object]] = {
            "mmn_fast fp16": lambda text=text: library.search(half, text, options.threads),  # type: ignore[misc]
            "mmn_fast int8": lambda text=text: library.search(coded, text, options.threads),  # type: ignore[misc]
            "PyTorch brute force": brute_force(library, text, options.threads),
            "copy of 256 MiB": copy_block(options.threads),
        }
        peer = faiss_search(library, text, options.threads)
        if peer is not None:
            ways["FAISS IndexFlatIP, one branch"] = peer
        timings = dict(alternate(ways, options.repeats, warmup=1))
        bandwidth = 2 * _COPIED / timings.pop("copy of 256 MiB").median_ms / 1e6
        best = [library.search(rows, text, options.threads) for rows in (half, coded)]
        np.testing.assert_array_equal(best[0].videos, best[1].videos)
        facts = {"videos": library.videos, "proposals": library.proposals, "sentences": sentences}
        facts["copied_gigabytes_per_s"] = round(bandwidth, 1)
        stage = f"search {library.videos} videos"
        record("bench_index", timings, error_of(library, text, best[0]), stage=stage, threads=options.threads, **facts)
        for name, timing in timings.items():
            read = library.iou.nbytes * (0.5 if "int8" in name else 1)
            rate = f", {read / timing.median_ms / 1e6:.1f} GB/s of {bandwidth:.1f}" if name.startswith("mmn") else ""
            print(f"{sentences} sentences, {name}: {timing.median_ms:.1f} ms{rate}", flush=True)


def growth(options: argparse.Namespace) -> None:
    """Time one sentence in int8 in libraries of 2,000 and of 10,000 videos, 17 GB."""
    base, rng = Library.drawn(200, options.proposals), np.random.default_rng(1)
    size, branches = options.proposals, (base.contrastive, base.iou)
    codes = [quantise(branch) for branch in branches]
    drawn = [*branches, *(code.codes for code in codes)]
    rows = [np.empty((10_000 * size, _J), array.dtype) for array in drawn]
    for video in range(10_000):  # permuted columns make new videos of the same lengths and steps
        span, order = slice(video % 200 * size, (video % 200 + 1) * size), rng.permutation(_J)
        for array, branch in zip(rows, drawn, strict=True):
            array[video * size : (video + 1) * size] = branch[span][:, order]
    text = [unit(rng, 1), unit(rng, 1)]
    ways: dict[str, Callable[[], object]] = {}
    for videos in (2_000, 10_000):
        contrastive, iou, *coded = (array[: videos * size] for array in rows)
        steps = (np.tile(code.steps, (videos // 200, 1)) for code in codes)
        stored = StoredRows(contrastive, iou, _NORM, *map(Codes, coded, steps))
        library = Library(contrastive, iou, size)
        ways[f"mmn_fast int8, {videos} videos"] = lambda library=library, stored=stored: library.search(  # type: ignore[misc]
            stored, text, options.threads
        )
    timings = alternate(ways, options.repeats, warmup=1)
    best = library.search(stored, text, options.threads)
    stage = "search 2000 and 10000 videos"
    facts = {"proposals": size, "sentences": 1, "threads": options.threads}
    record("bench_index", timings, error_of(library, text, best), stage=stage, **facts)
    for name, timing in timings.items():
        print(f"{name}: {timing.median_ms:.1f} ms", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("videos", 1000), ("proposals", 1104), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sentences", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--growth", action="store_true", help="time libraries of 2,000 and 10,000 videos instead")
    options = parser.parse_args()
    (growth if options.growth else bench)(options)


if __name__ == "__main__":
    main()
