"""Candidates that take turns, each in a process of its own: its threads and its memory are its own too."""

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
    """What takes part.

    Attributes:
        name: how it is called in the results.
        make: a function at a module's top level, called in the candidate's process; gives a call per stage, which
            returns its result as arrays.
        arguments: what `make` is called with.
    """

    name: str
    make: Callable[..., Mapping[str, Call]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Measured:
    """What came of one candidate in one stage.

    Attributes:
        timing: of its calls; None if it could not run.
        peak_mib: peak memory of its process so far, MiB, libraries, weights and earlier stages included.
        max_error: largest difference of its result, at the first call, from the truth's; None where that failed.
        failure: why it could not run, one sentence.
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
    """Measure every stage of every candidate, one call at a time, the candidates in turn.

    Args:
        candidates: at least one; a candidate that cannot run is reported as such and the others go on.
        stages: keys of what `make` gives, in this order.
        repeats: timed calls of each, at least 1.
        warmup: calls before them, beside the first, which the result is taken from.
        truth: what errors are measured from: it is asked for each result once and is never timed, and may give only
            the first items of a result. None takes the first of the candidates.
        limit_s: begin no further round of a stage after so many seconds, once every candidate has been timed.
        on_event: told what starts.

    Returns:
        By stage, by candidate.
    """
    truth = candidates[0] if truth is None else truth
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's thread pools, and break them
    expected: Mapping[str, Arrays | None] = {}
    workers: dict[str, _Worker] = {}
    try:
        if truth not in candidates:
            on_event(f"computing {truth.name}")
            expected = _results(_Worker(context, truth), stages)  # its process ends before any clock starts
        for candidate in candidates:
            on_event(f"starting {candidate.name}")
            workers[candidate.name] = _Worker(context, candidate)
            workers[candidate.name].wait_until_ready()  # one after another: their preparations do not compete
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
    """A candidate's result of each stage, None where it cannot run; its process ends."""
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
    """Seconds of each candidate's calls, the candidates in turn."""
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
    """The largest difference from the exact items, of which there may be fewer."""
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
        """The answer, or None from a candidate that cannot run."""
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
    """The candidate's process: prepares, then answers (failure, answer) until told to end."""
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
    except Exception as error:  # whatever a peer raises is a row of the table, and the others go on
        traceback.print_exc()
        pipe.send((f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}", None))
