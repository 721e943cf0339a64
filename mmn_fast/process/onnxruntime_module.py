"""Imports ONNX Runtime without its telemetry threads."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from mmn_fast.process.forks import fork_waits


def onnxruntime_module() -> Any:
    """The module `onnxruntime`.

    Since 1.29 its import starts threads that report usage. A forked process that ends normally waits for these threads
    for ever (`os._exit`, which multiprocessing uses, ends it at once). So the threads are not started, unless the
    environment variable `ORT_DISABLE_TELEMETRY` says otherwise or the module was imported before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with fork_waits:
        return import_module("onnxruntime")
