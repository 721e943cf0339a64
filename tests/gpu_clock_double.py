"""A simulated device and host, each with its own clock, for tests of the times that events measure.

The host spends time on every launch. The device runs queued work in order, each piece at least `launch_ms` after the
host queued it. Events are pieces of the same queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CYCLES_PER_MS = 1_980_000  # an H200's clock


@dataclass
class Device:
    """Stands for `torch.cuda`, as `DeviceClock` uses it, and for the host.

    Attributes:
        launch_ms: time from the host's launch to the start on an idle device.
        host_ms: the host's time per launch.
        now_ms: the host's clock.
        free_ms: time at which the device will have finished all queued work.
        queue_length: length at which the queue is full and the host must wait; None for no limit.
        log: names of the work that ran, in order.
    """

    launch_ms: float = 0.010
    host_ms: float = 0.004
    queue_length: int | None = None
    now_ms: float = 0.0
    free_ms: float = 0.0
    log: list[str] = field(default_factory=list)
    _ends: list[float] = field(default_factory=list)

    def now(self) -> float:
        """Read the host's clock in seconds."""
        return self.now_ms / 1e3

    def queue(self, milliseconds: float) -> float:
        """Queue work; return the time at which the device will have finished it."""
        self.now_ms += self.host_ms
        if self.queue_length is not None:
            waiting = [end for end in self._ends if end > self.now_ms]
            if len(waiting) >= self.queue_length:
                self.now_ms = waiting[-self.queue_length]
        self.free_ms = max(self.free_ms, self.now_ms + self.launch_ms) + milliseconds
        self._ends = [*self._ends[-2000:], self.free_ms]
        return self.free_ms

    def kernel(self, milliseconds: float, name: str = "") -> Callable[[], None]:
        """Make a function that queues a kernel of this duration."""

        def run() -> None:
            self.queue(milliseconds)
            self.log.append(name)

        return run

    def waiting(self, milliseconds: float) -> Callable[[], None]:
        """Make a function that queues a kernel and waits for it."""

        def run() -> None:
            self.now_ms = max(self.now_ms, self.queue(milliseconds))

        return run

    def _sleep(self, cycles: int) -> None:
        self.queue(cycles / CYCLES_PER_MS)

    def Event(self, enable_timing: bool) -> Event:  # noqa: N802 (torch.cuda names it so)
        assert enable_timing
        return Event(self)


@dataclass
class Event:
    """Stands for `torch.cuda.Event`."""

    device: Device
    at_ms: float = 0.0

    def record(self) -> None:
        """Queue the event."""
        self.at_ms = self.device.queue(0.0)

    def query(self) -> bool:
        """Whether the device has reached the event."""
        return self.at_ms <= self.device.now_ms

    def synchronize(self) -> None:
        """Make the host wait for the event."""
        self.device.now_ms = max(self.device.now_ms, self.at_ms)

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to another one."""
        return float(end.at_ms - self.at_ms)
