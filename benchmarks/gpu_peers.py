"""Peers of the video branch on a GPU: PyTorch with default and with best settings, and ONNX Runtime.

By default cuDNN picks its algorithms by heuristics. With `cudnn.benchmark` it times them first; this is a separate
peer. For more than `TUNED_VIDEOS` dense maps that takes too long.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_timing import Bench
from mmn_fast.model import MMN

PeerRun = Callable[[int], Any]
"""Runs a peer, given the number of the input set."""

TUNED_VIDEOS = 8


class VideoBranch(nn.Module):
    """The video side of a model as a module."""

    def __init__(self, net: MMN) -> None:
        super().__init__()
        self.net = net

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.encode_video(clips)


@contextmanager
def arithmetic(tf32: bool = False, benchmark: bool = False) -> Iterator[None]:
    """Run inference with or without TF32 and `cudnn.benchmark`; restore all settings, also after an exception."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    settings = {"allow_tf32": tf32, "benchmark": benchmark, "deterministic": False}
    found = {name: getattr(cudnn, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(cudnn, name, value)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        with torch.inference_mode():
            yield
    finally:
        for name, value in found.items():
            setattr(cudnn, name, value)
        torch.set_float32_matmul_precision(before)


def peers(net: MMN, bench: Bench, sets: list[Tensor], compiled: bool) -> dict[str, Callable[[], PeerRun]]:
    """Functions that make the peers' runs, by name; a peer uses no memory before its function is called.

    Args:
        net: the model in float32, on the device.
        bench: says which device is measured.
        sets: sets of pre-clips [B, T, D].
        compiled: include torch.compile.
    """

    def eager(**settings: bool) -> PeerRun:
        def run(number: int) -> Any:
            with arithmetic(**settings):
                return net.encode_video(sets[number])

        return run

    def half(dtype: torch.dtype, benchmark: bool = False, compile_it: bool = False) -> PeerRun:
        # `to` changes a module in place, and the float32 peers need the weights unchanged: hence a copy.
        # The copy is converted once; autocast would convert every weight in every call.
        branch: Any = VideoBranch(copy.deepcopy(net)).to(dtype=dtype, memory_format=torch.channels_last)
        inputs = [one.to(dtype) for one in sets]
        if compile_it:
            branch = torch.compile(branch, mode="max-autotune")

        def run(number: int) -> Any:
            with arithmetic(benchmark=benchmark):
                return branch(inputs[number])

        return run

    found: dict[str, Callable[[], PeerRun]] = {
        "PyTorch fp32": lambda: eager(),
        "PyTorch TF32": lambda: eager(tf32=True),
        "PyTorch fp16 channels-last": lambda: half(torch.float16),
        "PyTorch bf16 channels-last": lambda: half(torch.bfloat16),
    }
    if len(sets[0]) <= TUNED_VIDEOS:
        found |= {
            "PyTorch fp16 channels-last, cudnn.benchmark": lambda: half(torch.float16, benchmark=True),
            "PyTorch TF32, cudnn.benchmark": lambda: eager(tf32=True, benchmark=True),
            "PyTorch fp32, cudnn.benchmark": lambda: eager(benchmark=True),
        }
    if compiled:
        found["torch.compile fp16"] = lambda: half(torch.float16, compile_it=True)
    try:
        import onnxruntime
    except ImportError:
        return found
    for provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        if bench.device != "cpu" and provider in onnxruntime.get_available_providers():
            found[f"ONNX Runtime {provider}"] = lambda provider=provider: _exported(net, sets, provider)  # type: ignore
    return found


def waits(peer: str) -> bool:
    """Whether a peer's run waits for its work, on its own stream; the host's clock then times it."""
    return peer.startswith("ONNX Runtime")


def _exported(net: MMN, sets: list[Tensor], provider: str) -> PeerRun:
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(VideoBranch(net), (sets[0],), file, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime took {session.get_providers()[0]} instead of {provider}")
    binding, name = session.io_binding(), session.get_inputs()[0].name
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")

    def run(number: int) -> Any:
        binding.bind_input(name, "cuda", 0, np.float32, list(sets[number].shape), sets[number].data_ptr())
        session.run_with_iobinding(binding)
        return lambda: [torch.from_numpy(value.numpy()).to(sets[0].device) for value in binding.get_outputs()]

    return run


def largest_error(found: Any, expected: Any) -> float:
    """Largest difference of both branches over the videos of `expected`; `found` is a result or a call that gets it."""
    found = [branch[: len(expected[0])] for branch in (found() if callable(found) else found)]
    return max(float((a.float() - b).abs().max()) for a, b in zip(found, expected, strict=True))
