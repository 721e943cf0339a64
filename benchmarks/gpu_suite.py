"""Runs everything that needs a GPU, in one command: build, tests, benchmarks, compute-sanitizer.

`benchmarks/gpu_suite.sh` starts it. A table lists the steps of each plan in order: the seconds that a step should take
(counted, not measured), its limit in seconds, and the question that it answers.

The limits of a plan add up to its minutes less 15 seconds, at most. A step that ends early leaves its time to the next
one; a step that reaches its limit is ended, and later steps keep their limits. Benchmarks know their seconds and end by
themselves. A failed step is named at the end, and the other steps still run. Only a failed build stops the plan:
without it nothing would be measured of this tree.

--output names a folder that keeps the log, the measured lines and the findings of bench_gather, up to date at any
moment (see `suite_output`). To record them, put gather_choices.json into mmn_fast/kernels/gpu/conv and the lines into
benchmarks/results/local, and run `python -m benchmarks.report --write`.

PYTHON names the interpreter of the steps. BUILD=0 uses the extension as it is built already. BENCH_COMMIT names the
commit if the tree has no .git (see `commit`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.suite_output import Output, new_folder
from benchmarks.suite_step import Signals, run
from benchmarks.timing import LOCAL, ROOT
from mmn_fast.errors import InputError
from mmn_fast.kernels.gpu.conv.block_sizes import SHIPPED


@dataclass(frozen=True)
class Step:
    """A step of a plan: a row of the table.

    Attributes:
        name: the step's name, in headings and in the list of failed steps.
        expected_s: seconds that the step should take.
        limit_s: seconds that the step may take, besides the time that earlier steps left.
        answers: the question that the step answers.
        command: the interpreter's arguments; "" for the build.
        tool: tool of compute-sanitizer, with its options; "" for none.
    """

    name: str
    expected_s: int
    limit_s: int
    answers: str
    command: str
    tool: str = ""

    @property
    def is_benchmark(self) -> bool:
        """Whether the step is a benchmark, which takes --seconds and --rehearse."""
        return self.command.startswith("-m benchmarks.")


_BUILD = Step("build", 120, 180, "do the extension and its CUDA kernels build?", "")
_OPERATORS = (
    '-m pytest -q -m "gpu and not long" --continue-on-collection-errors -o faulthandler_timeout=60 tests/kernels'
)
_ENGINE = f"{_OPERATORS.removesuffix('tests/kernels')}tests/test_*gpu*.py tests/test_features.py"
# compute-sanitizer slows work down a hundredfold: every kernel runs once, at small sizes.
_ONCE_CUDA = (
    '-m pytest -q -x -m gpu -k "(fp16 or pair_top_moments or temporal_nms) and not tacos and not 2548"'
    " tests/kernels/test_gpu_fourier_ops.py tests/kernels/test_gpu_ops.py"
)
_ONCE_TRITON = (
    '-m pytest -q -x -m gpu -k "matches_the_reference and k4 and fp16"'
    " tests/kernels/test_triton_conv.py tests/kernels/test_triton_fourier.py"
)
_MEMORY = "memcheck --report-api-errors no"  # a refused CUDA call raises an exception, or is a probe
_GATHER, _GPU = "-m benchmarks.bench_gather --presets", "-m benchmarks.bench_gpu --presets"
# The most important steps come first, because the time limit cuts off the last ones.
_SMALL = "--batches 1 8 --steps ground encode_video engine stages encode_text score"
_LARGE = "--batches 48 --steps encode_video stages ground encode_text"

# fmt: off
PLANS: dict[int, tuple[Step, ...]] = {
    10: (
        _BUILD,
        Step("operators", 50, 90, "does every operator agree with its reference?", _OPERATORS),
        Step("conv tacos", 50, 70, "does FFT pay, and does gather beat the crop, for 8 videos?",
             f"{_GATHER} tacos --batches 8"),
        Step("conv activitynet", 40, 60, "the same", f"{_GATHER} activitynet --batches 8"),
        Step("request", 35, 50, "ground() of one video and sentence, and of a cached video, beside PyTorch",
             f"{_GPU} charades --batches 1 --steps ground"),
        Step("charades", 30, 45, "encode_video of 8 videos beside PyTorch: time, error, memory",
             f"{_GPU} charades --batches 8 --steps encode_video"),
        Step("activitynet", 30, 45, "the same", f"{_GPU} activitynet --batches 8 --steps encode_video"),
        Step("tacos", 30, 45, "the same", f"{_GPU} tacos --batches 8 --steps encode_video"),
    ),
    25: (
        _BUILD,
        Step("operators", 60, 120, "does every operator agree with its reference?", _OPERATORS),
        Step("engine", 45, 90, "does the whole engine agree with the reference?", _ENGINE),
        Step("conv tacos", 70, 100, "does FFT pay, and which convolution should auto take?",
             f"{_GATHER} tacos --batches 1 8 48"),
        Step("conv activitynet", 60, 85, "the same", f"{_GATHER} activitynet --batches 1 8 48"),
        Step("conv charades", 45, 70, "the same", f"{_GATHER} charades --batches 1 8 48"),
        Step("charades", 95, 120, "requests, stages and engines of every conv beside PyTorch and the floor",
             f"{_GPU} charades {_SMALL}"),
        Step("activitynet", 100, 125, "the same", f"{_GPU} activitynet {_SMALL}"),
        Step("tacos", 105, 130, "the same", f"{_GPU} tacos {_SMALL}"),
        Step("charades 48", 40, 60, "the same for 48 videos, with auto only", f"{_GPU} charades {_LARGE}"),
        Step("activitynet 48", 45, 65, "the same", f"{_GPU} activitynet {_LARGE}"),
        Step("tacos 48", 55, 75, "the same", f"{_GPU} tacos {_LARGE}"),
        Step("memcheck CUDA", 70, 95, "do the CUDA kernels stay in bounds?", _ONCE_CUDA, _MEMORY),
        Step("racecheck CUDA", 70, 95, "do their threads race in shared memory?", _ONCE_CUDA, "racecheck"),
        # No racecheck for Triton: it may report false hazards of Triton's asynchronous copies.
        Step("memcheck Triton", 50, 75, "do the Triton kernels stay in bounds?", _ONCE_TRITON, _MEMORY),
    ),
}
# fmt: on
DEFAULT_MINUTES = 10
"""Minutes of the default plan, the shorter one, which answers the most important questions."""

START_S = 20
"""Seconds of a benchmark's limit that are not for measuring: imports, and the end of the last measurement."""
_REHEARSED_S = 600  # limit of each rehearsed step: a CPU may be slow


def arguments_of(step: Step, seconds: float, rehearse: bool) -> list[str]:
    """Make the interpreter's arguments for a step.

    Args:
        step: a step other than the build.
        seconds: the step's time.
        rehearse: run at tiny sizes on a CPU. Tests for a device are then collected, but not run.
    """
    found: list[str] = []
    for word in shlex.split(step.command):
        paths = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(word)) if "*" in word else [word]
        found += paths
    if step.is_benchmark:
        found += ["--seconds", str(max(5, int(seconds) - START_S)), *(["--rehearse"] if rehearse else [])]
    elif rehearse:  # tests in Triton are marked "gpu" only if there is a device, else "interpreter"
        found += ["-q", "--collect-only", "-m", "(gpu or interpreter) and not long"]
    elif not step.tool and importlib.util.find_spec("xdist"):
        # Several processes compile at the same time, and a device error in one does not reach the others.
        found += ["-n", "8"]
    return found


class Suite:
    """One run of a plan.

    Attributes:
        failed: names of the steps that failed.
    """

    def __init__(self, plan: Sequence[Step], rehearse: bool, output: Output, signals: Signals) -> None:
        """Start the plan's clock.

        Args:
            plan: one of `PLANS`.
            rehearse: run at tiny sizes on a CPU.
            output: receives the run's output.
            signals: a noted signal ends the run.
        """
        self.failed: list[str] = []
        self._plan, self._rehearse, self._output, self._signals = plan, rehearse, output, signals
        self._python = os.environ.get("PYTHON") or sys.executable
        self._env = dict(os.environ, PYTHONUNBUFFERED="1")  # a killed step loses no output
        if rehearse:
            self._env.setdefault("OMP_NUM_THREADS", "1")  # on tiny products threads mostly wait for each other
        self._end = time.monotonic()  # end of the limits of all steps so far

    def run(self) -> None:
        """Run all steps; a signal ends the run."""
        taken: list[str] = []
        for step in self._plan:
            self._end += step.limit_s
            started, status = time.monotonic(), self._run(step, self._end - time.monotonic())
            taken.append(f"{step.name:20} {time.monotonic() - started:6.0f} s of {step.expected_s:3}  {status}")
            self._output.copy()
            if self._signals.came:
                break
            if step.name in self.failed and not step.command:
                self._output.say("the build failed, so nothing was measured of this tree: the rest was not run")
                break
        self._output.say("\n== " + f"{time.strftime('%H:%M:%S', time.gmtime())} seconds taken, of those expected")
        for line in taken:
            self._output.say(line)

    def _run(self, step: Step, seconds: float) -> str:
        if step.command == "" and os.environ.get("BUILD", "1") != "1":
            return "left out"
        limit = _REHEARSED_S if self._rehearse else seconds
        self._output.say(f"\n== {time.strftime('%H:%M:%S', time.gmtime())} {step.name}: {step.answers} ({limit:.0f} s)")
        if step.tool and not self._rehearse and not shutil.which("compute-sanitizer"):
            self._output.say("compute-sanitizer is not installed: not checked")
            return "not installed"
        command, env = self._command(step, step.limit_s if self._rehearse else seconds)
        status = run(command, env, ROOT, limit, self._output, self._signals)
        if self._signals.came:
            return "stopped"
        if status is None:
            # A sanitizer is so slow that a step which does not finish is not counted as failed.
            self._output.say(f"{step.name}: stopped after {limit:.0f} s" + (", no finding so far" if step.tool else ""))
            if step.tool:
                return "not finished"
        if status != 0:
            self.failed.append(step.name)
        return {0: "done", None: "stopped"}.get(status, "failed")

    def _command(self, step: Step, seconds: float) -> tuple[list[str], dict[str, str]]:
        if step.command == "":
            return self._build()
        command, env = [self._python, *arguments_of(step, seconds, self._rehearse)], self._env
        if step.tool and not self._rehearse:
            command = ["compute-sanitizer", "--tool", *step.tool.split(), "--error-exitcode", "99", *command]
            # Each tensor gets its own allocation: in PyTorch's cache, a neighbour's bytes would count as in bounds.
            env = env | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return command, env

    def _build(self) -> tuple[list[str], dict[str, str]]:
        # If the build's requirements are installed, nothing is downloaded. PATH finds cmake and ninja beside Python.
        here = all(importlib.util.find_spec(name) for name in ("pybind11", "setuptools", "wheel"))
        isolation = ["--no-build-isolation"] if here else []
        command = [self._python, "-m", "pip", "install", "--quiet", "--no-deps", *isolation, "--editable", "."]
        path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
        return command, self._env | {"MMN_FAST_CUDA": "AUTO" if self._rehearse else "ON", "PATH": path}


def table(minutes: int) -> str:
    """Format a plan as text, one line per step."""
    lines = [f"--minutes {minutes}:", "  expected  limit  step"]
    lines += [f"  {step.expected_s:6} s {step.limit_s:4} s  {step.name:18}  {step.answers}" for step in PLANS[minutes]]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_suite.sh: {message.removeprefix('argument ')}\n")


def _minutes(text: str) -> int:
    if text not in map(str, PLANS):
        raise argparse.ArgumentTypeError(f"expected {' or '.join(map(str, PLANS))}, got {text!r}")
    return int(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="benchmarks/gpu_suite.sh",
        description=__doc__,
        epilog="\n\n".join(map(table, PLANS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    choose = f"the plan: {' or '.join(map(str, PLANS))} (default: {DEFAULT_MINUTES})"
    parser.add_argument("--minutes", type=_minutes, default=DEFAULT_MINUTES, metavar="M", help=choose)
    parser.add_argument("--output", metavar="DIR", help="folder that keeps the results: new, or without results")
    parser.add_argument("--rehearse", action="store_true", help="the plan's commands at tiny sizes on the CPU")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"expected --minutes, --output and --rehearse, got {unknown[0]!r}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a plan and return the exit status."""
    options = _options(arguments)
    try:
        folder = new_folder(options.output) if options.output is not None else None
    except InputError as problem:
        print(f"gpu_suite.sh: {problem}", file=sys.stderr)
        return 2
    output = Output(folder, LOCAL, SHIPPED)
    signals = Signals()
    suite = Suite(PLANS[options.minutes], options.rehearse, output, signals)
    suite.run()
    if signals.came:
        output.say(f"gpu_suite.sh: stopped by {signal.Signals(signals.came).name}")
    elif suite.failed:
        output.say(f"gpu_suite.sh: failed: {', '.join(suite.failed)}")
    else:
        output.say("done")
    for problem in output.problems.values():
        print(f"gpu_suite.sh: not kept: {problem}", file=sys.stderr)
    if signals.came:
        return 128 + signals.came
    return 1 if suite.failed or output.problems else 0


if __name__ == "__main__":
    sys.exit(main())
