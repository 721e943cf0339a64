"""Runs a function in a forked child; a child that hangs is an error."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any


def in_fork(work: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """The result of a function in a forked child, or its exception.

    Args:
        work: what the child does; its result is pickled.
        limit_s: seconds after which the child counts as hanging.
    """
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: there are threads
        child = os.fork()
    if child == 0:
        try:
            try:
                answer = pickle.dumps((True, work()))
            except BaseException as error:  # the parent raises it
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
