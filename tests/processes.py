"""Runs a function in a forked child; children and tests that hang fail."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

LIMIT_S = 180
"""Longest time of a test, in seconds: many times a test's time on a loaded machine."""


def in_fork(work: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """Run a function in a forked child; return its result or raise its exception.

    Args:
        work: the function; its result is pickled.
        limit_s: seconds after which the child counts as hanging.
    """
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            try:
                answer = pickle.dumps((True, work()))
            except BaseException as error:  # the parent raises the error
                traceback.print_exc()
                answer = pickle.dumps((False, error))
            with os.fdopen(theirs, "wb") as pipe:
                pipe.write(answer)
            sys.stderr.flush()
        finally:
            os._exit(0)
    os.close(theirs)
    answer = b""
    try:
        while select.select([ours], [], [], limit_s)[0]:
            part = os.read(ours, 2**20)
            if not part:
                good, value = pickle.loads(answer)
                if good:
                    return value
                raise value
            answer += part
        raise AssertionError(f"the forked child has not answered in {limit_s} s")
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture(autouse=True)
def not_for_ever() -> Iterator[None]:
    """Fail a test whose own threads hang. Children inherit no alarm; for them `in_fork` has a limit."""

    def fail(*_: object) -> None:
        raise AssertionError(f"the test has not ended in {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
