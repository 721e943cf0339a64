"""The table of backends and the choice among them."""

from __future__ import annotations

import logging
from importlib import import_module

from mmn_fast.backends.base import Backend
from mmn_fast.types import BackendUnavailable, InputError

_LOG = logging.getLogger(__name__)

# name -> "module:class", in the order in which "auto" tries them. The reference comes first: the native backend stays
# within 1e-4 of it in fp32, the official outputs are promised to 2e-5. A name may have one class per kind of device.
BACKENDS: dict[str, str | dict[str, str]] = {
    "torch": "mmn_fast.backends.torch_ref:TorchBackend",
    "native": {
        "cuda": "mmn_fast.backends.native_gpu:NativeGpuBackend",
        "cpu": "mmn_fast.backends.native_cpu:NativeBackend",
    },
}


def backend_class(name: str, device: str = "auto", precision: str = "auto") -> type[Backend]:
    """The class behind a name, for a device.

    Args:
        name: a key of `BACKENDS`.
        device: "auto", "cpu", "cuda" or "cuda:N"; "auto" takes the class for CUDA if that can run, else the CPU's.
        precision: "auto" or a precision.

    Raises:
        InputError: no such backend.
    """
    if name not in BACKENDS:
        raise InputError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {name!r}")
    row = BACKENDS[name]
    if isinstance(row, str):
        return _imported(row)
    if device != "auto":
        return _imported(row[device.partition(":")[0]])
    on_cuda = _imported(row["cuda"])
    return on_cuda if on_cuda.unavailable_reason(device, precision) is None else _imported(row["cpu"])


def _imported(location: str) -> type[Backend]:
    module, _, attribute = location.partition(":")
    found: type[Backend] = getattr(import_module(module), attribute)
    return found


def resolve(backend: str, device: str, precision: str) -> tuple[type[Backend], dict[str, str]]:
    """Choose a backend: the named one, or with "auto" the first that can run.

    Args:
        backend: "auto" or a key of `BACKENDS`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" or a precision.

    Returns:
        The class, and why each backend that was passed over cannot run.

    Raises:
        BackendUnavailable: the named backend cannot run so, or none can; there is no fallback.
    """
    passed_over: dict[str, str] = {}
    for name in BACKENDS if backend == "auto" else [backend]:
        found = backend_class(name, device, precision)
        reason = found.unavailable_reason(device, precision)
        if reason is None:
            return found, passed_over
        _LOG.info("backend %r passed over: %s", name, reason)
        passed_over[name] = reason
    raise BackendUnavailable("; ".join(f"backend {name!r}: {reason}" for name, reason in passed_over.items()))


def available_backends(device: str = "auto", precision: str = "auto") -> dict[str, str | None]:
    """Every backend, with None if it can run here or the sentence that says why it cannot.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" or a precision.
    """
    return {name: backend_class(name, device, precision).unavailable_reason(device, precision) for name in BACKENDS}
