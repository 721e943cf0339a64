"""Times GPU work without the time of its launches.

One call between two events on an idle device also times its launch, 6 to 12 us. Here the device sleeps first, while the
host queues an event, many calls and a last event. When the device wakes, everything is queued already, so the time
between the events holds the calls alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmn_fast.kernels.gpu.recording import record

Run = Callable[[], Any]
"""Queues work on the current stream and does not wait for it."""

_SPAN_MS = 0.25  # least length of a sample: twenty launches of 12 us, and 500 steps of the events' clock
_MOST_CALLS = 512  # a queue takes some 1,000 launches before the host has to wait
_CYCLES_PER_MS = 2_000_000  # 2 GHz; an A100 (1.4 GHz) sleeps longer than asked, an H200 (2.0 GHz) about as long
_SLEEP_MS, _MOST_SLEEP_MS = 0.2, 200.0


@dataclass(frozen=True)
class Timing:
    """The result of timing.

    Attributes:
        milliseconds: time of one call; a value per sample.
        calls: calls per sample.
        clock: "device"; "device, with launches" if the device waited for the host; "host".
    """

    milliseconds: list[float]
    calls: int = 1
    clock: str = "device"

    @property
    def median_ms(self) -> float:
        """The median of the samples."""
        return statistics.median(self.milliseconds)


class DeviceClock:
    """Times work on the current CUDA device and stream.

    Args:
        cuda: makes events and sleeps, like `torch.cuda`.
        now: the host's clock, in seconds.
        seconds: limit of the time of all samples together.
        samples: most samples.
    """

    def __init__(
        self,
        cuda: Any = torch.cuda,
        now: Callable[[], float] = time.perf_counter,
        seconds: float = 0.5,
        samples: int = 30,
    ) -> None:
        self._cuda, self._now, self._seconds, self._samples = cuda, now, seconds, samples
        self._sleep_ms = _SLEEP_MS

    def times(self, runs: Sequence[Run]) -> Timing:
        """Time consecutive calls.

        Args:
            runs: the same work on different inputs, which take turns; at least one.

        Returns:
            Up to `samples` samples after a first one that does not count; fewer when `seconds` are over, at least one.
        """
        started, turns = self._now(), itertools.cycle(runs)
        self._sleep_ms = _SLEEP_MS

        def sample(calls: int) -> tuple[float, bool]:
            (span,), ahead = self._spans([[next(turns) for _ in range(calls)]])
            return span, ahead

        calls, (span, ahead) = 1, sample(1)
        while span < _SPAN_MS and calls < _MOST_CALLS:
            more = calls * 1.2 * _SPAN_MS / max(span, _SPAN_MS / 64)
            calls = min(-(-math.ceil(more) // len(runs)) * len(runs), _MOST_CALLS)  # all inputs equally often
            span, ahead = sample(calls)
        found, every = list[float](), True
        while not found or (len(found) < self._samples and self._now() - started < self._seconds):
            span, ahead = sample(calls)
            every = every and ahead
            found.append(span / calls)
        return Timing(found, calls, "device" if every else "device, with launches")

    def whole_ms(self, queue: Run) -> float:
        """Median milliseconds of the work that a function queues, replayed from a graph as in the engine."""
        queue()  # compiles kernels and lays out tables before the capture
        return self.times([record(queue).replay]).median_ms

    def layers_ms(self, runs: Sequence[Run], whole_ms: float) -> list[float]:
        """Milliseconds of each run in order, as shares of their common time.

        Each run finds the cache as the previous run leaves it. Runs that are queued one by one, with events in between,
        take somewhat longer than in one graph, so all times are scaled by the same factor.

        Args:
            runs: a stack's layers in order.
            whole_ms: the stack's time from a graph.

        Returns:
            A time per run; their sum is `whole_ms`.
        """
        started, found, self._sleep_ms = self._now(), list[list[float]](), _SLEEP_MS
        self._spans([[run] for run in runs])
        while not found or (len(found) < self._samples and self._now() - started < self._seconds):
            found.append(self._spans([[run] for run in runs])[0])
        medians = [statistics.median(one) for one in zip(*found, strict=True)]
        return [whole_ms * one / sum(medians) for one in medians]

    def _spans(self, groups: Sequence[Sequence[Run]]) -> tuple[list[float], bool]:
        """Milliseconds of each group, and whether everything was queued before the device began the first group."""
        while True:
            events = [self._cuda.Event(enable_timing=True) for _ in range(len(groups) + 1)]
            if self._sleep_ms:
                self._cuda._sleep(int(self._sleep_ms * _CYCLES_PER_MS))
            started = self._now()
            events[0].record()
            for group, event in zip(groups, events[1:], strict=True):
                for run in group:
                    run()
                event.record()
            queued_ms = (self._now() - started) * 1e3
            ahead = not events[0].query()
            events[-1].synchronize()
            if ahead or not self._sleep_ms:
                break
            # Work that waits for the device, or fills the queue, never gets ahead of the device: stop sleeping then.
            longer = 2 * max(self._sleep_ms, queued_ms)
            self._sleep_ms = longer if longer <= _MOST_SLEEP_MS else 0.0
        return [first.elapsed_time(last) for first, last in itertools.pairwise(events)], ahead
