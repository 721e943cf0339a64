"""Finds a TensorRT module (builder and runtime, or runtime alone) of a version that this package supports."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

# The first version whose Python bindings set a context's working memory, and the first version that was not checked.
FIRST_VERSION, UNKNOWN_VERSION = (10, 1), (12,)
BUILDER = ("tensorrt",)
RUNTIME = ("tensorrt", "tensorrt_lean")
_LOG = logging.getLogger(__name__)


def tensorrt_module(names: tuple[str, ...]) -> tuple[Any, str | None]:
    """The first installed module among `names` (`BUILDER` or `RUNTIME`) and None, or None and why, as a sentence."""
    for name in names:
        try:
            module = import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:  # another package holds its libraries
            return None, f"{name} does not load ({error})"
        version = tuple(int(part) for part in module.__version__.split(".")[:2])
        if not FIRST_VERSION <= version < UNKNOWN_VERSION:
            return None, f"{name} {module.__version__} is installed, expected a version from 10.1 to 11"
        return module, None
    return None, "TensorRT is not installed (pip install mmn_fast[tensorrt])"


def make_logger(trt: Any) -> Any:
    """Make a TensorRT logger that writes to this module's logger and keeps the last error for messages.

    Args:
        trt: the module from `tensorrt_module`.

    Returns:
        A `trt.ILogger` with the attribute `last_error`.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "it does not say why"

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = msg.strip()
                _LOG.error("TensorRT: %s", msg)
            elif severity == trt.ILogger.WARNING:
                _LOG.warning("TensorRT: %s", msg)
            else:
                _LOG.debug("TensorRT: %s", msg)

    return Logger()
