"""Imports ONNX Runtime, without the threads that it would start for its own reports."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from mmn_fast.process.forks import fork_waits


def onnxruntime_module() -> Any:
    """The module `onnxruntime`.

    Since 1.29 its import starts threads that report how it is used. A forked process waits for them for ever when it
    ends as a program does (`os._exit`, which multiprocessing uses, ends it at once). So they are not started, unless
    the environment variable `ORT_DISABLE_TELEMETRY` says otherwise or somebody imported the module before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with fork_waits:
        return import_module("onnxruntime")
