"""Rehearse plans of the GPU suite in one process: `python -m tests.suite_rehearsal MINUTES ...`.

Every command line runs as in `gpu_suite.sh --rehearse`, in the same order, with two differences that save a minute:
modules are imported once, and equal work is done once. A command line of an earlier plan is not run again. In a
rehearsal, benchmarks ignore the given presets and batches and always take the same tiny model. So the first command
line that asks for a step of bench_gpu, or for the layers of bench_gather, measures it for all.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the suite sets it; before torch is imported

import pytest

from benchmarks import bench_gather, bench_gpu, gpu_suite
from benchmarks.suite_output import Output

_commands: set[tuple[str, ...]] = set()


def _once(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that does the work on its first call and returns the same result on all calls."""
    found: list[Any] = []

    def first(*arguments: Any) -> Any:
        if found:
            print(f"{name}: measured before")
        else:
            found.append(work(*arguments))
        return found[0]

    return first


def _steps_once(make: Callable[..., dict[str, Callable[[], Any]]]) -> Callable[..., Any]:
    """Make the steps of bench_gpu once, for a model that is loaded once."""
    steps: dict[str, Callable[[], Any]] = {}

    def made(*arguments: Any) -> Any:
        if not steps:
            steps.update({name: _once(name, step) for name, step in make(*arguments).items()})
        return steps

    return made


def _in_process(
    command: Sequence[str], env: Mapping[str, str], folder: Path, limit_s: float, output: Output, signals: Any
) -> int | None:
    """Stand in for `suite_step.run`: run `python -m MODULE ARGUMENTS` in this process."""
    _, dash_m, module, *arguments = command
    assert (dash_m, Path.cwd()) == ("-m", folder)
    if (module, *arguments) in _commands:
        print("ran in another plan")
        return 0
    _commands.add((module, *arguments))
    try:
        if module == "pytest":
            return int(pytest.main(arguments))
        importlib.import_module(module).main(arguments)
    except SystemExit as ended:
        print(ended)
        return int(ended.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main() -> int:
    """Rehearse the plans that the arguments name by their minutes; return the first exit status that is not 0."""
    gpu_suite.run = _in_process
    bench_gpu._steps = _steps_once(bench_gpu._steps)
    for name in ("bench_products", "measure"):
        setattr(bench_gather, name, _once(name, getattr(bench_gather, name)))
    for minutes in sys.argv[1:]:
        status = gpu_suite.main(["--rehearse", "--minutes", minutes])
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
