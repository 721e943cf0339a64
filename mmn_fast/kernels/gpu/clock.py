"""Times GPU work without the time of its launches.

One call between two events on an idle device also times its launch, 6 to 12 us. Here the device sleeps first, while the
host queues an event, many calls and a last event. When the device wakes, everything is there already, so the time
between the events is that of the calls alone.
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

_SPAN_MS = 0.25  # a sample: twenty launches of 12 us, and 500 steps of the events' clock
_MOST_CALLS = 512  # a queue takes some 1,000 launches before it makes the host wait
_CYCLES_PER_MS = 2_000_000  # at 2 GHz, faster than the clocks of an A100 (1.4) and an H200 (2.0): sleeps last longer
_SLEEP_MS, _MOST_SLEEP_MS = 0.2, 200.0


@dataclass(frozen=True)
class Timing:
    """What was timed.

    Attributes:
        milliseconds: of one call; a value per sample.
        calls: calls of a sample.
        clock: "device"; "device, with launches" where the device waited for the host; "host".
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
        cuda: what makes events and sleeps, as `torch.cuda` does.
        now: the host's clock, in seconds.
        seconds: time that samples may take together.
        samples: at most so many.
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
        """Time calls that follow each other.

        Args:
            runs: the same work on different inputs, which take turns; at least one.

        Returns:
            Up to `samples` samples after one that does not count; fewer where their time is up, but one at least.
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
        """Milliseconds of what a function queues, replayed from a graph as the engine does: the median."""
        queue()  # kernels are compiled, and whatever is laid out once is
        return self.times([record(queue).replay]).median_ms

    def layers_ms(self, runs: Sequence[Run], whole_ms: float) -> list[float]:
        """Milliseconds of runs in their order, as shares of the time that they take together.

        Each run finds the cache as the one before leaves it. Queued one by one, with an event in between, they take
        somewhat longer than from one graph, so each is scaled by the same factor.

        Args:
            runs: a stack's layers in order.
            whole_ms: what the stack takes from a graph.

        Returns:
            Per run a time; together `whole_ms`.
        """
        started, found, self._sleep_ms = self._now(), list[list[float]](), _SLEEP_MS
        self._spans([[run] for run in runs])
        while not found or (len(found) < self._samples and self._now() - started < self._seconds):
            found.append(self._spans([[run] for run in runs])[0])
        medians = [statistics.median(one) for one in zip(*found, strict=True)]
        return [whole_ms * one / sum(medians) for one in medians]

    def _spans(self, groups: Sequence[Sequence[Run]]) -> tuple[list[float], bool]:
        """Milliseconds of each group, and whether all was queued before the device began with the first."""
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
            # Work that waits for the device, or fills the queue, is never ahead of it: no more sleeps then.
            longer = 2 * max(self._sleep_ms, queued_ms)
            self._sleep_ms = longer if longer <= _MOST_SLEEP_MS else 0.0
        return [first.elapsed_time(last) for first, last in itertools.pairwise(events)], ahead
