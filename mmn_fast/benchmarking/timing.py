"""Timings, and facts about the machine that gave them."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.process.cores import usable_cores


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one candidate: median, 20th and 80th percentile over `repeats` rounds."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The timing of some rounds, at least one."""
        median, p20, p80 = (float(ms) for ms in np.percentile(np.array(seconds) * 1e3, (50, 20, 80)))
        return cls(median, p20, p80, len(seconds))


def alternate(candidates: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Timing]:
    """Time candidates in this process, in turn, so that a slow spell of the machine affects all of them.

    Args:
        candidates: name -> function to time.
        repeats: timed calls of each candidate, at least 1.
        warmup: earlier, untimed calls of each candidate.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(taken) for name, taken in seconds.items()}


def machine() -> dict[str, Any]:
    """The time, the processor and the versions, to store beside a figure."""
    from mmn_fast.kernels import host
    from mmn_fast.process import torch_build
    from mmn_fast.version import __version__

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "cpu_isa": host.cpu_isa(),
        "python": platform.python_version(),
        "torch": torch_build.version(),
        "mmn_fast": __version__,
    }


def peak_memory_mib() -> float:
    """Peak resident memory of this process in MiB, Python and its libraries included."""
    try:
        # Not getrusage: on Linux a new process starts with its parent's peak.
        status = Path(f"/proc/{os.getpid()}/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in bytes where there is no /proc (macOS)
    return int(re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[0]) / 2**10


def _cpu_name() -> str:
    """The processor's name, family and model; virtual machines may hide the name but show family and model."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if not fields:
        return platform.machine()
    return f"{fields.get('model name', '?')} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
