"""The proposal convolution in which each layer runs by its fastest kernels."""

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
    """Make the stack of one algorithm.

    Args:
        algorithm: one of `costs.ALGORITHMS`.
        settings: the layers and their device.
        config: block sizes, see `ConvStack`.
        layers: numbers of the layers that will run, for algorithms that prepare each layer's weights; None for all.
    """
    if algorithm == "gather":
        return GatherProposalConv(settings, config)
    return FourierProposalConv(settings, config, layers, TILES[algorithm])


class MixedProposalConv(ConvStack):
    """A `ConvStack` in which each layer runs by gathering or by FFT tiles of some size, in float16 or float32.

    Args:
        choices: number of videos -> one of `costs.ALGORITHMS` per layer; a call takes the largest number that is not
            above its own.
        stacks: name -> stack of the same settings; missing stacks are made. All stacks share their scratch memory.
        configs: name -> block sizes of a stack that is made; None takes tuned or shipped ones.
        name: the name in `info`.
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
        """The algorithm of each layer in a call with so many videos."""
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
        """Some layers, grouped by the stack that runs them."""
        names = self.algorithms_for(videos)
        parts = [(stack, [n for n in numbers if names[n] == name]) for name, stack in self._stacks.items()]
        return [part for part in parts if part[1]]

    def _values_indexed(self) -> int:
        return max(super()._values_indexed(), *(stack._values_indexed() for stack in self._stacks.values()))


def layers_by_algorithm(choices: Mapping[int, Sequence[str]]) -> dict[str, set[int]]:
    """Algorithm -> layers that run by it for at least one number of videos."""
    layers: dict[str, set[int]] = {}
    for names in choices.values():
        for number, name in enumerate(names):
            layers.setdefault(name, set()).add(number)
    return layers
