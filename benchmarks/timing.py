"""How everything here is timed and recorded: in turn (A B A B), medians, with the machine and the largest error."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one candidate: median, 20th and 80th percentile over `repeats` rounds."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int


def alternate(candidates: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Timing]:
    """Time candidates in turn, so that a slow spell of the machine meets them all.

    Args:
        candidates: what to call, by name.
        repeats: timed calls of each.
        warmup: calls of each before that.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(*(float(ms) for ms in np.percentile(np.array(taken) * 1e3, (50, 20, 80))), repeats)
        for name, taken in seconds.items()
    }


def environment() -> dict[str, Any]:
    """The commit and the machine."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    import torch

    from mmn_fast.kernels import native

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": git("rev-parse", "--short=10", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_isa": native.cpu_isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def record(benchmark: str, timings: Mapping[str, Timing], max_error: float, **facts: Any) -> dict[str, Any]:
    """Append one line to `results/<cpu>.jsonl`.

    Args:
        benchmark: the script's name.
        timings: what `alternate` gave.
        max_error: largest difference of the candidates' results; a figure without it is not written.
        facts: preset, threads, precision, batch and whatever else says what was measured.

    Returns:
        The line.
    """
    machine = environment()
    line = {
        "benchmark": benchmark,
        **machine,
        **facts,
        "max_error": max_error,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
    with (RESULTS / f"{slug}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line


def _cpu_name() -> str:
    """Name of the processor and its family and model, which virtual machines leave when they hide the name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if not fields:
        return platform.machine()
    return f"{fields.get('model name', '?')} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
