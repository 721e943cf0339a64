"""Candidates that take turns, each in its own process, with its own threads and memory."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.benchmarking.timing import Timing, peak_memory_mib
from mmn_fast.errors import BackendUnavailable, InputError

Arrays = tuple[npt.NDArray[Any], ...]
Call = Callable[[], Arrays]


@dataclass(frozen=True)
class Candidate:
    """A participant in a measurement.

    Attributes:
        name: its name in the results.
        make: a function at a module's top level, called in the candidate's process. It returns a call per stage; each
            call returns its result as arrays.
        arguments: the arguments of `make`.
    """

    name: str
    make: Callable[..., Mapping[str, Call]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Measured:
    """The measurement of one candidate in one stage.

    Attributes:
        timing: timing of its calls; None if it could not run.
        peak_mib: peak memory of its process so far, MiB, libraries, weights and earlier stages included.
        max_error: largest difference of its first call's result from the truth's; None if the truth failed.
        failure: why it could not run, in one sentence.
    """

    timing: Timing | None = None
    peak_mib: float | None = None
    max_error: float | None = None
    failure: str | None = None


def take_turns(
    candidates: Sequence[Candidate],
    stages: Sequence[str],
    repeats: int,
    warmup: int = 1,
    truth: Candidate | None = None,
    limit_s: float | None = None,
    on_event: Callable[[str], object] = lambda event: None,
) -> dict[str, dict[str, Measured]]:
    """Measure every stage of every candidate, one call at a time; the candidates take turns.

    Args:
        candidates: at least one. A candidate that cannot run is reported as such, and the others go on.
        stages: keys of the calls from `make`, in the order to measure.
        repeats: timed calls of each candidate, at least 1.
        warmup: untimed calls after the first call; the first call gives the result.
        truth: gives the exact results. It makes each result once, is never timed, and may return only the first items
            of a result. None takes the first candidate.
        limit_s: seconds after which no further round of a stage begins, once every candidate has been timed.
        on_event: receives a message when a step starts.

    Returns:
        Stage -> candidate -> its measurement.
    """
    truth = candidates[0] if truth is None else truth
    context = multiprocessing.get_context("spawn")  # a fork would inherit broken thread pools
    expected: Mapping[str, Arrays | None] = {}
    workers: dict[str, _Worker] = {}
    try:
        if truth not in candidates:
            on_event(f"computing {truth.name}")
            expected = _results(_Worker(context, truth), stages)  # its process ends before any clock starts
        for candidate in candidates:
            on_event(f"starting {candidate.name}")
            workers[candidate.name] = _Worker(context, candidate)
            workers[candidate.name].wait_until_ready()  # one after another, so that preparations do not compete
        found = {}
        for stage in stages:
            first = {name: worker.ask("result", stage) for name, worker in workers.items()}
            exact = first[truth.name] if truth in candidates else expected[stage]
            seconds = _timed(stage, workers, repeats, warmup, limit_s, on_event)
            found[stage] = {
                name: _measured(worker, stage, first[name], exact, seconds[name]) for name, worker in workers.items()
            }
        return found
    finally:
        for worker in workers.values():
            worker.close()


def _results(worker: _Worker, stages: Sequence[str]) -> dict[str, Arrays | None]:
    """A candidate's result of each stage, None if it cannot run; then its process ends."""
    try:
        worker.wait_until_ready()
        return {stage: worker.ask("result", stage) for stage in stages}
    finally:
        worker.close()


def _timed(
    stage: str,
    workers: Mapping[str, _Worker],
    repeats: int,
    warmup: int,
    limit_s: float | None,
    on_event: Callable[[str], object],
) -> dict[str, list[float]]:
    """Time calls of the candidates in turn: candidate -> seconds of its calls."""
    on_event(stage)
    start = time.monotonic()
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(-warmup, repeats):
        if limit_s is not None and number != 0 and time.monotonic() - start > limit_s:
            if number > 0:
                break
            continue
        for name, worker in workers.items():
            taken = worker.ask("time", stage)
            if number >= 0 and taken is not None:
                seconds[name].append(taken)
    return seconds


def _measured(
    worker: _Worker, stage: str, result: Arrays | None, exact: Arrays | None, seconds: list[float]
) -> Measured:
    peak = worker.ask("peak", stage)
    if worker.failure is not None or result is None:
        return Measured(failure=worker.failure)
    error = None if exact is None else _largest_difference(result, exact)
    return Measured(Timing.of(seconds), peak, error)


def _largest_difference(result: Arrays, exact: Arrays) -> float:
    """The largest difference from the exact items; there may be fewer exact items than results."""
    return max(
        (
            float(np.abs(a[: len(b)].astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
            for a, b in zip(result, exact, strict=True)
        ),
        default=0.0,
    )


class _Worker:
    """The parent's end of a candidate's process."""

    def __init__(self, context: Any, candidate: Candidate) -> None:
        self.failure: str | None = None
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, candidate), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        self._receive()

    def ask(self, what: str, stage: str) -> Any:
        """Ask the process for an answer; None if the candidate cannot run."""
        if self.failure is not None:
            return None
        self._pipe.send((what, stage))
        return self._receive()

    def close(self) -> None:
        if self.failure is None:
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
        self._pipe.close()

    def _receive(self) -> Any:
        try:
            failure, answer = self._pipe.recv()
        except EOFError:
            self._process.join(10)
            failure, answer = f"its process ended with exit code {self._process.exitcode}", None
        self.failure = failure
        return answer


def _serve(pipe: Connection, candidate: Candidate) -> None:
    """Run in the candidate's process: prepare, then answer (failure, answer) until told to end."""
    try:
        calls = candidate.make(*candidate.arguments)
        pipe.send((None, None))
        while (request := pipe.recv()) is not None:
            what, stage = request
            if what == "result":
                pipe.send((None, calls[stage]()))
            elif what == "time":
                start = time.perf_counter()
                calls[stage]()
                pipe.send((None, time.perf_counter() - start))
            else:
                pipe.send((None, peak_memory_mib()))
    except (BackendUnavailable, InputError, ImportError) as reason:
        pipe.send((str(reason), None))
    except Exception as error:  # any error of a candidate becomes a row of the table, and the others go on
        traceback.print_exc()
        pipe.send((f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}", None))
