"""Times the targets of one video's tubes: the C++ op beside its definition in loops, and beside NumPy's sums per tube.

    python -m benchmarks.bench_tubes [--tubes 100] [--frames 300] [--threads 1] [--repeats 2]

The ways take turns; each turn's processor seconds are printed. The definition takes half a minute per turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.evaluation.tubes import target_iou
from mmn_fast.geometry import plan_for
from mmn_fast.kernels import reference
from mmn_fast.presets import PRESETS
from mmn_fast.tubes import Tube, check_track, row_span, span_ious

PRESET = PRESETS["hc-stvg"]
CALLS = 20  # calls of a fast way per turn: a single call is too short for the clock's resolution


def drawn_tube(rng: np.random.Generator, frames: int) -> Tube:
    """Draw a tube of `frames` frames; its box wanders and keeps its size."""
    corner = rng.uniform(0, 200, 2) + np.cumsum(rng.uniform(-2, 2, (frames, 2)), axis=0)
    first = int(rng.integers(0, 100))
    return Tube(np.arange(first, first + frames), np.hstack([corner, corner + rng.uniform(40, 160, 2)]))


def by_numpy(tubes: list[Tube], truth: Tube) -> Float32:
    """Compute the same targets in NumPy, by one sum per tube."""
    cells, N = plan_for(PRESET).cells, PRESET.num_clips
    target = np.zeros((len(tubes), N, N), np.float32)
    true = check_track(truth.frames, truth.boxes, "truth")
    for number, tube in enumerate(tubes):
        track = check_track(tube.frames, tube.boxes, "tube")
        spans = row_span(len(track[0]), N, cells)
        target[number, cells[:, 0], cells[:, 1]] = span_ious(true, track, spans)[0]
    return target


def main() -> None:
    """Measure all ways and print their times."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("tubes", 100), ("frames", 300), ("threads", 1), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    tubes = [drawn_tube(rng, options.frames) for _ in range(options.tubes)]
    truth, N = drawn_tube(rng, options.frames), PRESET.num_clips
    pairs = [(tube.frames, tube.boxes) for tube in tubes]
    ways: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
        "loops": (1, lambda: reference.target_iou(pairs, (truth.frames, truth.boxes), N)),
        "C++": (CALLS, lambda: target_iou(tubes, (truth.frames, truth.boxes), N, threads=options.threads)),
        "NumPy": (CALLS, lambda: by_numpy(tubes, truth)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(options.repeats):
        for name, (calls, run) in ways.items():
            started = time.process_time()
            for _ in range(calls):
                results[name] = run()
            seconds[name].append((time.process_time() - started) / calls)
            print(f"{name}: {1e3 * seconds[name][-1]:.3f} ms", flush=True)
    for name in ("loops", "NumPy"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["C++"], strict=True)]
        print(f"{name} over C++: {', '.join(f'{ratio:.1f}' for ratio in ratios)}")
    error = max(np.abs(results[name] - results["loops"]).max() for name in ("C++", "NumPy"))
    print(f"largest difference from the loops: {error:.1e}")


if __name__ == "__main__":
    main()
