"""The proposal convolution with each layer by the kernels that are the fastest for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig
from mmn_fast.kernels.gpu.conv.costs import TILES
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.fourier import FourierProposalConv
from mmn_fast.kernels.gpu.conv.gather import GatherProposalConv
from mmn_fast.kernels.gpu.conv.stack import ConfigFor, ConvStack


def make_stack(
    algorithm: str,
    settings: ConvSettings,
    config: GatherConfig | ConfigFor | None = None,
    layers: Collection[int] | None = None,
) -> ConvStack:
    """The stacked layers by one of `costs.ALGORITHMS`.

    Args:
        algorithm: its name.
        settings: the stack's.
        config: block sizes, as of `ConvStack`.
        layers: numbers of those that will run, for algorithms that prepare weights of each; None for all.
    """
    if algorithm == "gather":
        return GatherProposalConv(settings, config)
    return FourierProposalConv(settings, config, layers, TILES[algorithm])


class MixedProposalConv(ConvStack):
    """The stacked layers, each by gathering or by FFT tiles of some size: `ConvStack` in float16 or float32.

    Args:
        choices: per number of videos one of `costs.ALGORITHMS` for every layer; a call takes those of the
            largest number that is not larger than its own.
        stacks: of the same settings, per name; those that are missing are made. Their scratch memory is shared.
        configs: block sizes of those that are made, per name; None takes those that are shipped or were tuned.
        name: what `info` calls it.
    """

    dtypes = FourierProposalConv.dtypes
    max_kernel = max(TILES.values())

    def __init__(
        self,
        settings: ConvSettings,
        choices: Mapping[int, Sequence[str]],
        stacks: Mapping[str, ConvStack] | None = None,
        configs: Mapping[str, ConfigFor] | None = None,
        name: str = "mixed",
    ) -> None:
        self.name = name
        super().__init__(settings)
        self.choices = {videos: tuple(names) for videos, names in choices.items()}
        self._stacks: dict[str, ConvStack] = dict(stacks or {})
        for algorithm, layers in layers_by_algorithm(self.choices).items():
            if algorithm not in self._stacks:
                config = (configs or {}).get(algorithm)
                self._stacks[algorithm] = make_stack(algorithm, settings, config, layers)

    def algorithms_for(self, videos: int) -> tuple[str, ...]:
        """What a call with so many videos runs each layer by."""
        return self.choices[max(known for known in self.choices if known <= videos)]

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
        return max(super()._values_indexed(), *(stack._values_indexed() for stack in self._stacks.values()))


def layers_by_algorithm(choices: Mapping[int, Sequence[str]]) -> dict[str, set[int]]:
    """Per algorithm the layers that run by it for some number of videos."""
    layers: dict[str, set[int]] = {}
    for names in choices.values():
        for number, name in enumerate(names):
            layers.setdefault(name, set()).add(number)
    return layers
