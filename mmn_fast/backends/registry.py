"""The table of backends, and the choice of one."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from importlib import import_module

from mmn_fast.backends.base import Backend
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.kernels import host
from mmn_fast.precisions import PRECISIONS
from mmn_fast.process.forks import fork_waits

_LOG = logging.getLogger(__name__)

# name -> "module:class", in the order in which "auto" tries them. A name may have one class per kind of device.
BACKENDS: dict[str, str | dict[str, str]] = {
    "native": {
        "cuda": "mmn_fast.backends.native_gpu:NativeGpuBackend",
        "cpu": "mmn_fast.backends.native_cpu:NativeBackend",
    },
    "torch": "mmn_fast.backends.torch_ref:TorchBackend",
    "onnx": "mmn_fast.backends.ort:OnnxBackend",
    "tensorrt": "mmn_fast.backends.trt:TensorRTBackend",
}


def check_device(device: str, precision: str) -> None:
    """Refuse an unknown device or precision.

    Raises:
        InputError: `device` is not "auto", "cpu", "cuda" or "cuda:N"; `precision` not "auto" or one of `PRECISIONS`.
    """
    if not isinstance(device, str) or not re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", device):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision: expected auto or one of {', '.join(PRECISIONS)}, got {precision!r}")


def backend_class(name: str, device: str = "auto", precision: str = "auto") -> type[Backend]:
    """The class behind a name, for a device.

    Args:
        name: a key of `BACKENDS`.
        device: "auto", "cpu", "cuda" or "cuda:N"; "auto" takes the class for CUDA if it can run, else the CPU's.
        precision: "auto" or a precision.

    Raises:
        InputError: no such backend.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise InputError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {name!r}")
    row = BACKENDS[name]
    if isinstance(row, str):
        return _imported(row)
    if device != "auto":
        return _imported(row[device.partition(":")[0]])
    if host.build_info()["cuda"] and host.has_cuda_device():
        on_cuda = _imported(row["cuda"])
        if on_cuda.unavailable_reason(device, precision) is None:
            return on_cuda
    return _imported(row["cpu"])


def _imported(location: str) -> type[Backend]:
    module, _, attribute = location.partition(":")
    with fork_waits:  # a fork during an import would leave the import's lock held for ever in the child
        found: type[Backend] = getattr(import_module(module), attribute)
    return found


@dataclass(frozen=True)
class Choice:
    """The result of `choose`.

    Attributes:
        backend: the class.
        passed_over: earlier backend -> why it was skipped, in one sentence.
    """

    backend: type[Backend]
    passed_over: dict[str, str]


def choose(backend: str, device: str, precision: str, *, exported: bool) -> Choice:
    """Choose the named backend, or with "auto" the first one that can run such a model; import no later one.

    Args:
        backend: "auto" or a key of `BACKENDS`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" or a precision.
        exported: whether the model is an export; "auto" takes a backend that runs exports, else one that runs weights.

    Raises:
        InputError: no such backend, device or precision.
        BackendUnavailable: the named backend, or with "auto" every backend, cannot run; there is no fallback.
    """
    check_device(device, precision)
    passed_over: dict[str, str] = {}
    for name in BACKENDS if backend == "auto" else [backend]:
        found, reason = _found(name, device, precision)
        if backend == "auto" and found is not None:
            reason = _misfit(found, exported) or reason or found.only_by_name
        if found is not None and reason is None:
            return Choice(found, passed_over)
        if reason is not None:
            _LOG.info("backend %r passed over: %s", name, reason)
            passed_over[name] = reason
    raise BackendUnavailable("; ".join(f"backend {name!r}: {reason}" for name, reason in passed_over.items()))


def _misfit(found: type[Backend], exported: bool) -> str | None:
    """Why a backend does not run this kind of model, as a sentence; None if it does."""
    if found.takes_exports == exported:
        return None
    if exported:
        return "it runs weights, but the model is an export"
    return "it runs exports only; mmn-fast export makes them"


def _found(name: str, device: str, precision: str) -> tuple[type[Backend], str | None] | tuple[None, str]:
    """A backend's class, and why it cannot run or None; the class is None if a package that it needs is missing."""
    try:
        found = backend_class(name, device, precision)
        return found, found.unavailable_reason(device, precision)
    except ModuleNotFoundError as error:  # PyTorch is optional: exports run without it
        return None, f"{error.name} is not installed (pip install {error.name})"


def available_backends(device: str = "auto", precision: str = "auto") -> dict[str, str | None]:
    """Every backend's name -> None if it can run here, else why it cannot, as a sentence.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" or a precision.

    Raises:
        InputError: no such device or precision.
    """
    check_device(device, precision)
    return {name: _found(name, device, precision)[1] for name in BACKENDS}
