"""Keeps the benchmarks' figures, each with the commit, the machine and the largest error.

A run appends its lines to results/local, which git ignores, so a benchmark changes nothing that is committed or
tested. `python -m benchmarks.report --write` records the lines.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.commit import DIGITS, commit_of, git
from mmn_fast.benchmarking.timing import Timing, alternate, machine
from mmn_fast.kernels.gpu.conv.block_sizes import SHIPPED

__all__ = ["LOCAL", "RESULTS", "ROOT", "Timing", "alternate", "append", "environment", "record"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LOCAL = RESULTS / "local"
_MEASURED = tuple(str(path.relative_to(ROOT)) for path in (RESULTS, SHIPPED) if path.is_relative_to(ROOT))
"""Files that benchmarks write: they do not count as changes, so a run's first line does not make the second dirty."""


def environment() -> dict[str, Any]:
    """Describe the commit and the machine. If neither git nor `BENCH_COMMIT` names a commit, it is "" and dirty.

    bench_gather writes gather_choices.json, by which `auto` chooses; that file therefore never makes the tree dirty.
    If it may differ from the commit's, the key `gather_choices` holds the first digits of its SHA-256.
    """
    commit, dirty = commit_of(ROOT, _MEASURED)
    line: dict[str, Any] = {"commit": commit, "dirty": dirty, **machine()}
    if git(ROOT, "status", "--porcelain", "--", str(SHIPPED)) != "":
        line["gather_choices"] = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:DIGITS]
    return line


def record(benchmark: str, timings: Mapping[str, Timing], max_error: float, **facts: Any) -> dict[str, Any]:
    """Append one line to `results/local/<cpu>.jsonl`.

    Args:
        benchmark: the script's name.
        timings: timings by candidate, from `alternate`.
        max_error: largest difference of the candidates' results; no figure is written without it.
        facts: further values that describe the measurement: preset, threads, precision, batch.

    Returns:
        The line.
    """
    line = {
        "benchmark": benchmark,
        **environment(),
        **facts,
        "max_error": max_error,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
    }
    append(line, line["cpu"])
    return line


def append(line: Mapping[str, Any], processor: str) -> None:
    """Append a line to the processor's file in results/local, whole or not at all.

    Raises:
        OSError: the line cannot be written.
    """
    LOCAL.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")
    content = (json.dumps(line) + "\n").encode()
    with (LOCAL / f"{slug}.jsonl").open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            written = file.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        except OSError:
            file.truncate(before)  # the next line must not follow half a line
            raise


try:
    commit_of(ROOT)
except ValueError as _problem:  # checked on import, not after the minutes of the first measurement
    print(_problem, file=sys.stderr)
    sys.exit(2)
