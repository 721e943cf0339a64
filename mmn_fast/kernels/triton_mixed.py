"""The proposal convolution with each layer by the kernels that are the fastest for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmn_fast.geometry import FloatArray, ProposalPlan
from mmn_fast.kernels.gather_choices import video_bucket
from mmn_fast.kernels.gpu_buckets import VIDEO_BUCKETS
from mmn_fast.kernels.triton_conv import GatherProposalConv
from mmn_fast.kernels.triton_fourier import FourierProposalConv
from mmn_fast.kernels.triton_stack import ConvStack


class MixedProposalConv(ConvStack):
    """The stacked layers, each by gathering or by FFT tiles: `ConvStack` in float16 or float32.

    Args:
        choices: per bucket of videos (`gpu_buckets.VIDEO_BUCKETS`) "gather" or "fft" for every layer.
        stacks: of the same arguments, per name; those that are missing are made. Their scratch memory is shared.
    """

    name = "mixed"
    dtypes = FourierProposalConv.dtypes
    max_kernel = GatherProposalConv.max_kernel

    def __init__(
        self,
        weights: Sequence[FloatArray],
        biases: Sequence[FloatArray],
        plan: ProposalPlan,
        dtype: torch.dtype,
        device: torch.device,
        choices: Mapping[int, Sequence[str]],
        stacks: Mapping[str, ConvStack] | None = None,
    ) -> None:
        super().__init__(weights, biases, plan, dtype, device)
        self.choices = {bucket: tuple(choices[bucket]) for bucket in VIDEO_BUCKETS}
        self._stacks: dict[str, ConvStack] = dict(stacks or {})
        arguments = (weights, biases, plan, dtype, device)
        if "gather" not in self._stacks:
            self._stacks["gather"] = GatherProposalConv(*arguments)
        if "fft" not in self._stacks:
            self._stacks["fft"] = FourierProposalConv(*arguments, layers=spectral_layers(self.choices))

    def algorithms_for(self, videos: int) -> tuple[str, ...]:
        """What a call with so many videos runs each layer by."""
        return self.choices[video_bucket(videos)]

    def prepare_layers(self, numbers: Sequence[int], videos: int) -> None:
        for stack, own in self._parts(numbers, videos):
            stack.prepare_layers(own, videos)

    def scratch_bytes(self, numbers: Sequence[int], videos: int) -> int:
        return sum(stack.scratch_bytes(own, videos) for stack, own in self._parts(numbers, videos))

    def run_layer(self, number: int, x: Tensor, out: Tensor) -> None:
        self._stacks[self.algorithms_for(x.shape[1])[number]].run_layer(number, x, out)

    def release(self) -> None:
        super().release()
        for stack in self._stacks.values():
            stack.release()

    def info(self) -> dict[str, Any]:
        return {**super().info(), "proposal_conv_layers": {n: list(names) for n, names in self.choices.items()}}

    def _parts(self, numbers: Sequence[int], videos: int) -> list[tuple[ConvStack, list[int]]]:
        """The stacks that run any of some layers, and which."""
        names = self.algorithms_for(videos)
        parts = [(stack, [n for n in numbers if names[n] == name]) for name, stack in self._stacks.items()]
        return [part for part in parts if part[1]]

    def _values_indexed(self) -> int:
        return max(stack._values_indexed() for stack in self._stacks.values())


def spectral_layers(choices: Mapping[int, Sequence[str]]) -> set[int]:
    """Layers that run by FFT tiles for any number of videos."""
    return {number for names in choices.values() for number, name in enumerate(names) if name == "fft"}
