"""proposal_conv in C++: which algorithm each layer takes, and its weights packed for it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmn_fast.geometry import ProposalPlan, TileCover, cover_with_tiles
from mmn_fast.kernels.conv_transforms import TileTransform, fourier, winograd
from mmn_fast.kernels.native import _C, Float32, cpu_isa, num_threads


class Algorithm(NamedTuple):
    """How a layer multiplies.

    Attributes:
        transform: None for tap by tap, else the transform of a kernel width.
        terms: bf16 terms of the inputs and of the weights, (0, 0) for float32; see csrc/cpu/gemm.h.
        flops_per_s: products it makes on two cores with AVX-512 and AMX, benchmarks/NOTES.md; their ratios decide, so
            that a slower core with slower memory chooses alike.
        precisions: where it may be chosen.
    """

    transform: Callable[[int], TileTransform] | None
    terms: tuple[int, int]
    flops_per_s: float
    precisions: tuple[str, ...]


ALGORITHMS = {
    "direct": Algorithm(None, (0, 0), 330e9, ("fp32", "bf16")),
    "winograd": Algorithm(winograd, (0, 0), 300e9, ("fp32", "bf16")),
    "fft": Algorithm(fourier, (0, 0), 300e9, ("fp32", "bf16")),
    "fft-bf16x3": Algorithm(fourier, (2, 2), 850e9, ("fp32",)),
    "direct-bf16": Algorithm(None, (1, 1), 1600e9, ("bf16",)),
    "fft-bf16x2": Algorithm(fourier, (2, 1), 1200e9, ("bf16",)),
}
_WEIGHT_BYTES_PER_S = 25e9
_WINOGRAD_KERNELS = (3, 5)  # its accuracy falls quickly with k
_FOURIER_KERNELS = range(3, 12)  # a tile of 16 gains little above
_PACK_CHANNELS = 32  # output channels transformed at a time: bounds the float64 intermediates


def can_use(algorithm: str, kernel: int) -> bool:
    """Whether there is such an algorithm for this kernel width on this process's instruction set."""
    transform, terms = ALGORITHMS[algorithm].transform, ALGORITHMS[algorithm].terms
    fits = transform is None or kernel in (_WINOGRAD_KERNELS if transform is winograd else _FOURIER_KERNELS)
    return fits and (terms == (0, 0) or has_bf16())


def has_bf16() -> bool:
    """Whether the instruction set in use multiplies bf16."""
    return cpu_isa() == "amx"


@dataclass(frozen=True)
class LayerChoice:
    """What was chosen for one layer: the algorithm, products of one channel pair for a video, packed MiB."""

    algorithm: str
    products: int
    packed_mib: float


def choose_algorithms(
    plan: ProposalPlan,
    widths: Sequence[tuple[int, int]],
    precision: str = "fp32",
    max_packed_mib: float | None = None,
) -> list[LayerChoice]:
    """The cheapest algorithm of every layer for one video: arithmetic plus one pass over the packed weights.

    Args:
        plan: the plan.
        widths: (C_in, C_out) of every layer.
        precision: "fp32" or "bf16".
        max_packed_mib: where all packed weights would take more, layers fall to direct, those first that gain least per
            MiB; None for no limit. Direct weights take what they take.

    Returns:
        One choice per layer. It depends on sizes and on the instruction set alone.
    """
    rated = [_rate(plan, number, *width, precision) for number, width in enumerate(widths)]
    chosen = [min(options, key=lambda option: option[0]) for options in rated]
    direct = [
        min((o for o in options if ALGORITHMS[o[1].algorithm].transform is None), key=lambda o: o[0])
        for options in rated
    ]

    def gain_per_mib(number: int) -> float:
        saved_s = direct[number][0] - chosen[number][0]
        return saved_s / max(chosen[number][1].packed_mib - direct[number][1].packed_mib, 1e-9)

    for number in sorted(range(len(chosen)), key=gain_per_mib):
        if max_packed_mib is None or sum(choice.packed_mib for _, choice in chosen) <= max_packed_mib:
            break
        chosen[number] = direct[number]
    return [choice for _, choice in chosen]


def _rate(plan: ProposalPlan, number: int, c_in: int, c_out: int, precision: str) -> list[tuple[float, LayerChoice]]:
    """Seconds and choice of every algorithm that can do the layer."""
    rated = []
    for name, algorithm in ALGORITHMS.items():
        if precision not in algorithm.precisions or not can_use(name, plan.kernel):
            continue
        if algorithm.transform is None:
            products, matrices = int(plan.layers[number].taps.sum()), plan.kernel**2
        else:
            transform = algorithm.transform(plan.kernel)
            products = len(cover_with_tiles(plan, number, transform.m).outputs) * transform.products
            matrices = transform.tile**2
        packed = (2 * algorithm.terms[1] or 4) * matrices * c_in * c_out
        seconds = 2 * products * c_in * c_out / algorithm.flops_per_s + packed / _WEIGHT_BYTES_PER_S
        rated.append((seconds, LayerChoice(name, products, packed / 2**20)))
    return rated


class NativeProposalConv:
    """The stacked layers with their weights packed; safe to call from several threads.

    Args:
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded in.
        biases: per layer float32 [C_out].
        plan: what to compute.
        algorithms: per layer a key of `ALGORITHMS`; None chooses by `choose_algorithms`.
        precision: see `choose_algorithms`.
        max_packed_mib: see `choose_algorithms`.
        isa: instruction set; None for the process's choice.
    """

    def __init__(
        self,
        weights: Sequence[Float32],
        biases: Sequence[Float32],
        plan: ProposalPlan,
        algorithms: Sequence[str] | None = None,
        precision: str = "fp32",
        max_packed_mib: float | None = None,
        isa: str | None = None,
    ) -> None:
        if algorithms is None:
            widths = [(weight.shape[1], weight.shape[0]) for weight in weights]
            algorithms = [choice.algorithm for choice in choose_algorithms(plan, widths, precision, max_packed_mib)]
        self.algorithms = tuple(algorithms)
        self.plan = plan
        self.native = _C.ProposalConv(isa)
        self._out_width = len(biases[-1])
        for number, (weight, bias, algorithm) in enumerate(zip(weights, biases, algorithms, strict=True)):
            self._add(number, np.ascontiguousarray(weight), np.ascontiguousarray(bias), algorithm)

    def _add(self, number: int, weight: Float32, bias: Float32, algorithm: str) -> None:
        layer = self.plan.layers[number]
        cells_in = len(self.plan.layers[number - 1].cells if number else self.plan.inputs)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithms: expected some of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        make_transform, terms, _, _ = ALGORITHMS[algorithm]
        if make_transform is None:
            flat = weight.reshape(*weight.shape[:2], -1)
            self.native.add_direct(flat, bias, layer.neighbours, layer.cell_weights, cells_in, *terms)
            return
        transform = make_transform(self.plan.kernel)
        cover: TileCover = cover_with_tiles(self.plan, number, transform.m)
        bt, at = transform.bt.astype(np.float32), np.ascontiguousarray(transform.at, np.float32)
        self.native.add_tiled(
            weight.shape[1], bias, layer.cell_weights, cells_in, bt, at, cover.inputs, cover.outputs, *terms
        )
        for first in range(0, len(weight), _PACK_CHANNELS):
            points = transform.points(weight[first : first + _PACK_CHANNELS])
            self.native.pack_points(points, first, num_threads())

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
