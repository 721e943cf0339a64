"""The reference backend: the model in plain PyTorch. Loading a model or asking for CUDA imports PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmn_fast.arrays import Float32, Int64
from mmn_fast.backends.base import Backend, Branches, Settings
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.precisions import refusal
from mmn_fast.process import torch_build
from mmn_fast.process.forks import fork_waits

_PRECISIONS = ("fp64", "fp32", "bf16", "fp16")


class TorchBackend(Backend):
    """Runs the model in plain PyTorch; fp32 by default.

    fp64 is the reference for every other backend and precision: weights, sums and functions are float64, and each seam
    rounds its results to float32 once. fp64 computes the proposal convolution on the plan's cells and taps alone
    (`reference.proposal_conv_packed`), 36 to 40 % of the dense map's work.

    bf16 and fp16 round the operands of every convolution and linear layer to that precision and multiply in float32.
    They are slower than fp32, and show how much a fast path in that precision may lose.

    Videos and sentences are encoded one at a time, unpadded. PyTorch picks its algorithms by shape, so this makes a
    result independent of the rest of the batch, bit for bit.
    """

    name = "torch"

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        if not torch_build.is_installed():
            return "torch is not installed (pip install torch)"
        if lacking := refusal(precision, _PRECISIONS):
            return lacking
        if not device.startswith("cuda"):
            return None
        lost = _cuda_lost() if torch_build.has_cuda() else None
        if lost:
            return f"device {device!r}: {lost}"
        count = _cuda_devices() if torch_build.has_cuda() else 0
        if count == 0:
            return f"device {device!r}: PyTorch {torch_build.version()} sees no CUDA device"
        if int(device.partition(":")[2] or 0) >= count:
            return f"device {device!r}: there are {count} CUDA devices"
        return None

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        super().__init__(model, settings)
        with fork_waits:  # a fork during an import would leave the import's lock held for ever in the child
            from mmn_fast.runtime.torch_runner import TorchRunner

        self._runner = TorchRunner(model, settings.device, settings.precision_or("fp32"), settings.threads)
        self.threads, self.net = self._runner.threads, self._runner.net

    def encode_video(self, pre_clips: Float32) -> Branches:
        return self._runner.encode_video(pre_clips)

    def encode_text(self, token_ids: Sequence[Int64]) -> Branches:
        return self._runner.encode_text(token_ids)

    def score(self, video: Branches, text: Branches) -> Branches:
        return self._runner.score(video, text)

    def info(self) -> dict[str, Any]:
        return self._runner.info()


def _cuda_lost() -> str | None:
    with fork_waits:
        from mmn_fast.process.torch_threads import cuda_lost_by_fork

    return cuda_lost_by_fork()


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
