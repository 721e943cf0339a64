"""Where the benchmarks' figures are kept: with the commit, the machine and the largest error.

A run appends its lines to results/local, which git ignores, so that measuring changes nothing that is committed or
tested. `python -m benchmarks.report --write` records them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmn_fast.benchmarking.timing import Timing, alternate, machine

__all__ = ["LOCAL", "RESULTS", "ROOT", "Timing", "alternate", "append", "environment", "record"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LOCAL = RESULTS / "local"


def environment() -> dict[str, Any]:
    """The commit and the machine; without git or outside of a repository no commit, and so dirty."""

    def git(*arguments: str) -> str:
        try:
            found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return found.stdout.strip()

    # The results are not what was measured: the first line of a run does not make the tree dirty for the second.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    commit = git("rev-parse", "--short=10", "HEAD")
    return {"commit": commit, "dirty": bool(changed) or not commit, **machine()}


def record(benchmark: str, timings: Mapping[str, Timing], max_error: float, **facts: Any) -> dict[str, Any]:
    """Append one line to `results/local/<cpu>.jsonl`.

    Args:
        benchmark: the script's name.
        timings: what `alternate` gave.
        max_error: largest difference of the candidates' results; a figure without it is not written.
        facts: preset, threads, precision, batch and whatever else says what was measured.

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
    """Append a line to the processor's file of lines that are not recorded yet."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")
    with (LOCAL / f"{slug}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
