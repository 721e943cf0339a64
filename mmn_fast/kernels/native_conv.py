"""proposal_conv in C++: which algorithm each layer takes, and its weights packed for it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmn_fast.geometry import ProposalPlan, TileCover, cover_with_tiles
from mmn_fast.kernels.conv_transforms import TileTransform, fourier, winograd
from mmn_fast.kernels.native import _C, Float32, num_threads

ALGORITHMS = ("direct", "winograd", "fft")

# Cost of a layer for one video, from a machine of two cores with AVX-512 (benchmarks/NOTES.md): the ratio of the two
# decides, so that a slower core with slower memory chooses alike.
_FLOPS_PER_S = 300e9
_WEIGHT_BYTES_PER_S = 25e9
_PACK_CHANNELS = 32  # output channels transformed at a time: bounds the float64 intermediates


@dataclass(frozen=True)
class LayerChoice:
    """What was chosen for one layer: the algorithm, products of one channel pair for a video, packed MiB."""

    algorithm: str
    products: int
    packed_mib: float


def choose_algorithms(
    plan: ProposalPlan, widths: Sequence[tuple[int, int]], max_packed_mib: float | None = None
) -> list[LayerChoice]:
    """The cheapest algorithm of every layer for one video: arithmetic plus one pass over the packed weights.

    Args:
        plan: the plan.
        widths: (C_in, C_out) of every layer.
        max_packed_mib: where all packed weights would take more, layers fall to direct, those first that gain least per
            MiB; None for no limit. Direct weights take what they take.

    Returns:
        One choice per layer. It depends on sizes alone.
    """
    chosen, direct_costs, costs = [], [], []
    for number, (layer, (c_in, c_out)) in enumerate(zip(plan.layers, widths, strict=True)):
        options = [("direct", int(layer.taps.sum()), plan.kernel**2)]
        for name, transform in _transforms(plan.kernel).items():
            tiles = len(cover_with_tiles(plan, number, transform.m).outputs)
            options.append((name, tiles * transform.products, transform.tile**2))
        rated = []
        for name, products, matrices in options:
            packed = 4 * matrices * c_in * -(-c_out // 32) * 32
            cost = 2 * products * c_in * c_out / _FLOPS_PER_S + packed / _WEIGHT_BYTES_PER_S
            rated.append((cost, LayerChoice(name, products, packed / 2**20)))
        costs.append(min(rated, key=lambda option: option[0])[0])
        chosen.append(min(rated, key=lambda option: option[0])[1])
        direct_costs.append(rated[0])
    total = sum(choice.packed_mib for choice in chosen)
    gains = [
        ((direct[0] - cost) / max(choice.packed_mib - direct[1].packed_mib, 1e-9), number)
        for number, (choice, cost, direct) in enumerate(zip(chosen, costs, direct_costs, strict=True))
        if choice.algorithm != "direct"
    ]
    for _, number in sorted(gains):
        if max_packed_mib is None or total <= max_packed_mib:
            break
        total -= chosen[number].packed_mib - direct_costs[number][1].packed_mib
        chosen[number] = direct_costs[number][1]
    return chosen


def _transforms(kernel: int) -> dict[str, TileTransform]:
    """What can be used beside direct: Winograd loses accuracy quickly with k, a tile of 16 gains little above 11."""
    found = {}
    if kernel in (3, 5):
        found["winograd"] = winograd(kernel)
    if 3 <= kernel <= 11:
        found["fft"] = fourier(kernel)
    return found


class NativeProposalConv:
    """The stacked layers with their weights packed; safe to call from several threads.

    Args:
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded in.
        biases: per layer float32 [C_out].
        plan: what to compute.
        algorithms: per layer one of `ALGORITHMS`; None chooses by `choose_algorithms`.
        max_packed_mib: see `choose_algorithms`.
        isa: instruction set; None for the process's choice.
    """

    def __init__(
        self,
        weights: Sequence[Float32],
        biases: Sequence[Float32],
        plan: ProposalPlan,
        algorithms: Sequence[str] | None = None,
        max_packed_mib: float | None = None,
        isa: str | None = None,
    ) -> None:
        if algorithms is None:
            widths = [(weight.shape[1], weight.shape[0]) for weight in weights]
            algorithms = [choice.algorithm for choice in choose_algorithms(plan, widths, max_packed_mib)]
        self.algorithms = tuple(algorithms)
        self.plan = plan
        self.native = _C.ProposalConv(isa)
        self._out_width = len(biases[-1])
        for number, (weight, bias, algorithm) in enumerate(zip(weights, biases, algorithms, strict=True)):
            self._add(number, np.ascontiguousarray(weight), np.ascontiguousarray(bias), algorithm)

    def _add(self, number: int, weight: Float32, bias: Float32, algorithm: str) -> None:
        layer = self.plan.layers[number]
        cells_in = len(self.plan.layers[number - 1].cells if number else self.plan.inputs)
        if algorithm == "direct":
            flat = weight.reshape(*weight.shape[:2], -1)
            self.native.add_direct(flat, bias, layer.neighbours, layer.cell_weights, cells_in)
            return
        transforms = {"winograd": winograd, "fft": fourier}
        if algorithm not in transforms:
            raise ValueError(f"algorithms: expected some of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        transform = transforms[algorithm](self.plan.kernel)
        cover: TileCover = cover_with_tiles(self.plan, number, transform.m)
        bt, at = transform.bt.astype(np.float32), np.ascontiguousarray(transform.at, np.float32)
        self.native.add_tiled(weight.shape[1], bias, layer.cell_weights, cells_in, bt, at, cover.inputs, cover.outputs)
        for first in range(0, len(weight), _PACK_CHANNELS):
            points = transform.points(weight[first : first + _PACK_CHANNELS])
            self.native.pack_points(np.ascontiguousarray(points), first)

    @property
    def packed_mib(self) -> list[float]:
        """MiB of each layer's packed weights."""
        return [size / 2**20 for size in self.native.packed_bytes()]

    def __call__(
        self, inputs: Float32, out: npt.NDArray[np.float32] | None = None, threads: int | None = None
    ) -> Float32:
        """`reference.proposal_conv_packed` on NumPy arrays.

        Args:
            inputs: float32 [B, R_0, C_0], the 2D map at `plan.inputs`.
            out: result, float32 [B, P, C]; allocated if None.
            threads: see `native.num_threads`; the result does not depend on it.

        Returns:
            `out`. A video's rows do not depend on the other videos, bit for bit.
        """
        if out is None:
            out = np.empty((len(inputs), len(self.plan.layers[-1].cells), self._out_width), np.float32)
        self.native.run(inputs, out, num_threads(threads))
        return out
