"""Candidates that run the video branch: the native backend, PyTorch in several ways, ONNX Runtime, OpenVINO.

Each function here prepares one candidate, in that candidate's own process (`mmn_fast.benchmarking.turns`). All run the
weights of a full-size golden case on the same pre-clips. The exported model is the plain reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.golden import cases
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.backends.torch_ref import TorchBackend
from mmn_fast.benchmarking.turns import Arrays, Call
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.errors import BackendUnavailable
from mmn_fast.features import pre_clips
from mmn_fast.model import MMN, build_model

STAGE = "encode_video"
PEERS = (
    "PyTorch fp32",
    "PyTorch fp32 channels-last",
    "PyTorch bf16",
    "PyTorch bf16 channels-last",
    "torch.compile fp32",
    "torch.compile bf16",
    "ONNX Runtime fp32",
    "OpenVINO fp32",
    "OpenVINO bf16",
)
OURS = ("mmn_fast fp32", "mmn_fast bf16")


class VideoBranch(nn.Module):
    """Makes `encode_video` a module's forward, to export and to compile it."""

    def __init__(self, net: MMN) -> None:
        super().__init__()
        self.net = net

    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run `MMN.encode_video`."""
        return self.net.encode_video(clips)


def inputs_of(name: str, batch: int) -> np.ndarray:
    """Repeat the first video of a golden case `batch` times: float32 [batch, T, D]."""
    case = cases.load(name)
    one = pre_clips(case.videos[0].features, case.preset, "features").reshape(1, case.preset.num_pre_clips, -1)
    return np.ascontiguousarray(np.repeat(one, batch, 0))


def load_case(name: str) -> LoadedModel:
    """Load a golden case as a model without a tokenizer."""
    case = cases.load(name)
    return LoadedModel(case.preset, case.text, case.state(), cast(Any, None), name)


def make_ours(name: str, precision: str, batch: int, threads: int) -> dict[str, Call]:
    """Prepare the native backend."""
    reason = NativeBackend.unavailable_reason("cpu", precision)
    if reason is not None:
        raise BackendUnavailable(reason)
    backend, inputs = NativeBackend(load_case(name), Settings("cpu", precision, threads)), inputs_of(name, batch)
    return {STAGE: lambda: backend.encode_video(inputs)}


def make_exact(name: str) -> dict[str, Call]:
    """Prepare the reference in float64, for one video: all videos of a batch are equal."""
    backend, inputs = TorchBackend(load_case(name), Settings("cpu", "fp64")), inputs_of(name, 1)
    return {STAGE: lambda: backend.encode_video(inputs)}


def make_torch(name: str, precision: str, batch: int, threads: int, way: str) -> dict[str, Call]:
    """Prepare the reference in PyTorch: `way` is "plain", "channels-last" or "compile"."""
    torch.set_num_threads(threads)
    branch, tensor = _branch(name), torch.from_numpy(inputs_of(name, batch))
    if way == "channels-last":
        branch = branch.to(memory_format=torch.channels_last)
    run = torch.compile(branch) if way == "compile" else branch

    def call() -> Arrays:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            contrastive, iou = run(tensor)
        return contrastive.float().numpy(), iou.float().numpy()

    return {STAGE: call}


def make_onnxruntime(name: str, batch: int, threads: int, folder: Path) -> dict[str, Call]:
    """Prepare ONNX Runtime in fp32; it has no bf16 on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(_exported(name, batch, folder)), settings, ["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs_of(name, batch)}
    return {STAGE: lambda: tuple(session.run(None, feed))}


def make_openvino(name: str, precision: str, batch: int, threads: int, folder: Path) -> dict[str, Call]:
    """Prepare OpenVINO; in bf16, refuse hosts that do not multiply bf16: OpenVINO would use another precision there."""
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendUnavailable("OpenVINO does not multiply bf16 on this processor")
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    request = core.compile_model(str(_exported(name, batch, folder)), "CPU", options).create_infer_request()
    inputs = inputs_of(name, batch)

    def call() -> Arrays:
        found = request.infer([inputs])
        return found[0], found[1]

    return {STAGE: call}


def export_video(name: str, batch: int, folder: Path) -> None:
    """Export the reference for one batch size; the runtimes optimise fixed shapes best."""
    inputs = torch.from_numpy(inputs_of(name, batch))
    partial = folder / f"{name}_{batch}.partial" / "video.onnx"
    partial.parent.mkdir()
    torch.onnx.export(_branch(name), (inputs,), str(partial), verbose=False, external_data=False)
    partial.replace(folder / f"{name}_{batch}.onnx")


def _branch(name: str) -> VideoBranch:
    model = load_case(name)
    return VideoBranch(build_model(model.preset, model.text, model.state).requires_grad_(False)).eval()


def _exported(name: str, batch: int, folder: Path) -> Path:
    path = folder / f"{name}_{batch}.onnx"
    if not path.exists():
        raise BackendUnavailable("there is no exported model: see above why the export failed")
    return path
