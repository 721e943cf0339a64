"""Priority of threads that work in the background."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_NICENESS = 3  # half of the processor time that a thread of the usual priority gets beside it


def give_way() -> None:
    """Let the process's other threads go first when cores are too few; for threads that this one starts, too.

    Only on Linux, where niceness is a property of each thread: elsewhere nothing happens.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid the call
            os.nice(_NICENESS)
