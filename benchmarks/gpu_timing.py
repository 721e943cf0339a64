"""Clocks, rooflines, lines and options that the benchmarks on a GPU share.

"device" times come from `mmn_fast.kernels.gpu.clock` and include no launches. Only they are compared with the floor.
"host" times come from the host's clock, for calls that return results to the host.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.timing import append, environment
from mmn_fast.kernels.gpu.clock import DeviceClock, Run, Timing
from mmn_fast.kernels.gpu.recording import record

PRESETS = ("charades", "activitynet", "tacos")
INPUT_SETS = 4  # together they exceed the cache, except for the smallest work


class HostClock:
    """Times calls that wait for their work, by the host's clock; stands in for `DeviceClock` in rehearsals.

    Args:
        clock: name of the clock in timings.
        seconds: no further call starts after this time.
        most: most calls, >= 1.
        warmup: calls before the timed ones.
    """

    def __init__(self, clock: str, seconds: float, most: int, warmup: int) -> None:
        self._clock, self._seconds, self._most, self._warmup = clock, seconds, most, warmup

    def times(self, runs: Sequence[Run]) -> Timing:
        """Time calls in turn."""
        for number in range(self._warmup):
            runs[number % len(runs)]()
        found: list[float] = []
        started = time.perf_counter()
        while not found or (len(found) < self._most and time.perf_counter() - started < self._seconds):
            run, start = runs[len(found) % len(runs)], time.perf_counter()
            run()
            found.append((time.perf_counter() - start) * 1e3)
        return Timing(found, 1, self._clock)

    def layers_ms(self, runs: Sequence[Run], whole_ms: float) -> list[float]:
        """Time each layer, like `DeviceClock.layers_ms`."""
        found = [self.times([run]).median_ms for run in runs]
        return [whole_ms * one / sum(found) for one in found]


@dataclass
class Bench:
    """A benchmark's device, time limit and measured rates; writes its lines."""

    device: str
    rehearse: bool
    deadline: float
    benchmark: str
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def clock(self) -> DeviceClock | HostClock:
        """The device's clock; a rehearsal runs on the CPU and uses the host's clock."""
        return HostClock("device", 0.0, 1, 0) if self.rehearse else DeviceClock()

    def time(self, run: Callable[[int], Any]) -> Timing:
        """Time GPU work: takes the function that queues it, given the number of an input set."""
        return self.clock.times([partial(run, number) for number in range(INPUT_SETS)])

    def time_captured(self, runs: Sequence[Run]) -> Timing:
        """Time runs as replayed CUDA graphs; each must have run before. A rehearsal times the runs themselves."""
        return self.clock.times(runs if self.rehearse else [record(run).replay for run in runs])

    def time_on_host(self, run: Callable[[int], Any], most: int = 200, seconds: float = 3.0) -> Timing:
        """Time calls that return results to the host, given the number of an input set, after two warm-up calls."""
        clock = HostClock("host", seconds, 1, 0) if self.rehearse else HostClock("host", seconds, most, 2)
        return clock.times([partial(run, number) for number in range(INPUT_SETS)])

    def out_of_time(self, what: str) -> bool:
        """Whether the time limit is reached; then print that `what` was not measured."""
        if time.monotonic() < self.deadline:
            return False
        print(f"not measured, out of time: {what}", flush=True)
        return True

    def write(
        self, stage: str, peer: str, timing: Timing, error: float, work: tuple[float, float] | None = None, **facts: Any
    ) -> None:
        """Print a line and append it to the results.

        Args:
            stage: name of the timed stage.
            peer: name of the candidate.
            timing: the measured times.
            error: largest error.
            work: FLOP and bytes, for the roofline's columns; only used with device times, since host times include
                launches.
            facts: further values of the line.
        """
        if work is not None and timing.clock == "device":
            facts |= self._roofline(*work, timing)
        p20, p50, p80, p99 = (float(ms) for ms in np.percentile(timing.milliseconds, (20, 50, 80, 99)))
        shown = "  ".join(f"{name} {value}" for name, value in facts.items() if name in ("preset", "batch", "of_floor"))
        by = "" if timing.clock == "device" else f"  ({timing.clock})"
        print(f"{stage:14} {shown}  {peer:28} p50 {p50:9.3f} ms  p99 {p99:9.3f}  error {error:.1e}{by}", flush=True)
        if self.rehearse:
            return
        name = torch.cuda.get_device_name()
        line = {"benchmark": self.benchmark, **environment(), "gpu": name, **self.rates, "stage": stage, "peer": peer}
        line |= {**facts, "p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "p99_ms": p99, "max_error": error}
        line |= {"repeats": len(timing.milliseconds), "calls": timing.calls, "clock": timing.clock}
        append(line, name)

    def _roofline(self, flop: float, moved: float, timing: Timing) -> dict[str, float]:
        """Columns of the roofline: work, bytes, the least time that both allow, and its share of the measured time."""
        floor_ms = max(flop / self.rates["matmul_tflops"] / 1e9, moved / self.rates["copy_gbps"] / 1e6)
        return {"flop": flop, "bytes": moved, "floor_ms": floor_ms, "of_floor": round(floor_ms / timing.median_ms, 3)}


def measure_rates(bench: Bench) -> None:
    """Measure the rate of the library's matrix product and the bandwidth of a copy."""
    side, size = (64, 2**16) if bench.rehearse else (8192, 2**28)
    dtype = torch.float32 if bench.device == "cpu" else torch.float16
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    source = torch.randn(size, device=bench.device)
    target = torch.empty_like(source)
    matmul = bench.time(lambda _: a @ b).median_ms
    copy = bench.time(lambda _: target.copy_(source)).median_ms
    bench.rates = {"matmul_tflops": 2 * side**3 / matmul / 1e9, "copy_gbps": 2 * source.nbytes / copy / 1e6}
    print(f"matrix product {bench.rates['matmul_tflops']:.1f} TFLOP/s, copy {bench.rates['copy_gbps']:.0f} GB/s")


def add_options(parser: argparse.ArgumentParser, presets: Sequence[str], batches: Sequence[int]) -> None:
    """Add --presets, --batches, --seconds and --rehearse; `presets` and `batches` are the defaults, in this order."""
    parser.add_argument("--presets", nargs="+", type=one_of(PRESETS), default=list(presets), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=_batch, default=list(batches), metavar="N")
    parser.add_argument("--seconds", type=_seconds, default=90.0, metavar="S")
    parser.add_argument("--rehearse", action="store_true")


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Make a type for argparse that accepts these names and refuses others in one sentence."""

    def name(value: str) -> str:
        if value not in names:
            raise argparse.ArgumentTypeError(f"expected {', '.join(names[:-1])} or {names[-1]}, got {value!r}")
        return value

    return name


def _batch(value: str) -> int:
    try:
        found = int(value)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"expected a number of videos, at least 1, got {value!r}")
    return found


def _seconds(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not found > 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {value!r}")
    return found


def start(options: argparse.Namespace, benchmark: str) -> Bench:
    """Start a benchmark's time limit and measure its rates. A rehearsal has no limit and runs on one thread."""
    if options.rehearse:
        torch.set_num_threads(1)
    until = math.inf if options.rehearse else time.monotonic() + options.seconds
    bench = Bench("cpu" if options.rehearse else "cuda", options.rehearse, until, benchmark)
    measure_rates(bench)
    return bench
