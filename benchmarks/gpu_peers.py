"""The peers of the video branch on a GPU: PyTorch as it comes and at its best, and ONNX Runtime.

cuDNN picks its algorithms by heuristics as it comes; with `cudnn.benchmark`, a peer of its own, it times them first.
Convolutions of more than `TUNED_VIDEOS` dense maps take too long to be tuned by the clock.
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
"""Takes the number of the input set."""

TUNED_VIDEOS = 8


class VideoBranch(nn.Module):
    """The video side as a module of its own."""

    def __init__(self, net: MMN) -> None:
        super().__init__()
        self.net = net

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.encode_video(clips)


@contextmanager
def arithmetic(tf32: bool = False, benchmark: bool = False) -> Iterator[None]:
    """Inference with or without TF32 and cuDNN's own timing; puts back what was, also after an exception."""
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
    """Makers of the peers' runs: what they need is made when their turn comes.

    Args:
        net: the model in float32, on the device.
        bench: where.
        sets: pre-clips [B, T, D].
        compiled: whether torch.compile is among them.
    """

    def eager(**settings: bool) -> PeerRun:
        def run(number: int) -> Any:
            with arithmetic(**settings):
                return net.encode_video(sets[number])

        return run

    def half(dtype: torch.dtype, benchmark: bool = False, compile_it: bool = False) -> PeerRun:
        # A copy: `to` changes a module in place, and the peers in float32 run the weights as they are.
        # In 16 bits once and for all: autocast would convert every weight at every call.
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
    """Whether a peer's run waits for its work, on a stream of its own: then the host's clock times it."""
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
    """The largest difference of both branches, which `found` may be a call for, in the videos of `expected`."""
    found = [branch[: len(expected[0])] for branch in (found() if callable(found) else found)]
    return max(float((a.float() - b).abs().max()) for a, b in zip(found, expected, strict=True))
