"""proposal_conv in C++: chooses an algorithm for each layer and packs the layer's weights for it once."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.geometry import ProposalPlan, TileCover, cover_with_tiles
from mmn_fast.kernels.cpu.cell_runs import cell_runs
from mmn_fast.kernels.host import _C, cpu_isa, num_threads
from mmn_fast.kernels.transforms import TileTransform, fourier, winograd


class Algorithm(NamedTuple):
    """An algorithm for one layer.

    Attributes:
        transform: kernel width -> transform; None for direct algorithms (tap by tap, or over runs of cells).
        terms: bf16 terms of the inputs and of the weights, (0, 0) for float32; see csrc/cpu/kernels/products/gemm.h.
        kernels: supported kernel widths.
        precisions: precisions that may choose it.
        isas: instruction sets that have the algorithm; None for all.
    """

    transform: Callable[[int], TileTransform] | None
    terms: tuple[int, int]
    kernels: Container[int]
    precisions: tuple[str, ...]
    isas: Sequence[str] | None = None


_BF16_ISAS = _C.bf16_isas()
_TILE_ISAS = _C.bf16_isas(tiles=True)

_ANY_KERNEL = range(1, 2**31)
_WINOGRAD_KERNELS = (3, 5)  # Winograd's accuracy falls quickly with k
_FOURIER_KERNELS = range(3, 12)  # tiles of 16 gain little for wider kernels
_ONE_TERM_KERNELS = (3, 5, 9)  # not 7: on hcstvg_small twice as far off as direct-bf16

ALGORITHMS = {
    "direct": Algorithm(None, (0, 0), _ANY_KERNEL, ("fp32", "bf16")),
    "winograd": Algorithm(winograd, (0, 0), _WINOGRAD_KERNELS, ("fp32", "bf16")),
    "fft": Algorithm(fourier, (0, 0), _FOURIER_KERNELS, ("fp32", "bf16")),
    "fft-bf16x3": Algorithm(fourier, (2, 2), _FOURIER_KERNELS, ("fp32",), _BF16_ISAS),
    "direct-bf16": Algorithm(None, (1, 1), _ANY_KERNEL, ("bf16",), _BF16_ISAS),
    "runs-bf16": Algorithm(None, (1, 1), _ANY_KERNEL, ("bf16",), _TILE_ISAS),
    "fft-bf16x2": Algorithm(fourier, (2, 1), _FOURIER_KERNELS, ("bf16",), _BF16_ISAS),
    "fft-bf16": Algorithm(fourier, (1, 1), _ONE_TERM_KERNELS, ("bf16",), _BF16_ISAS),
}

# Products a second on two cores, per instruction set (benchmarks/NOTES.md). Only their ratios decide, so slower cores
# with slower memory choose alike. A product of two terms counts once.
_FLOAT32_RATES = {"direct": 200e9, "winograd": 185e9, "fft": 180e9}
_DOT_RATES = {"direct-bf16": 400e9, "fft-bf16": 340e9, "fft-bf16x2": 185e9, "fft-bf16x3": 120e9}
# AMX; fft-bf16x2 and fft-bf16x3 keep their ratio in an older measurement.
_TILE_RATES = {"direct-bf16": 1600e9, "runs-bf16": 3500e9, "fft-bf16": 1000e9, "fft-bf16x2": 740e9, "fft-bf16x3": 520e9}
_WEIGHT_BYTES_PER_S = 25e9  # read rate of weights from memory
_CACHED_MIB = 4.0  # a layer's weights up to this size are assumed to stay in a cache
_NEAR = 1.5  # Winograd must beat an FFT whose weights stay in a cache by more than this factor: it is less accurate
# Fewest channels for spectra of bf16 terms: with 48 the fused scores of the small golden models are up to 2.5e-4 off
# with fft-bf16x3, and there is next to nothing to gain.
_SPECTRAL_CHANNELS = 128
# Products of two bf16 terms lose 2^-17 of each operand. fp32 may take them only if scores stay within 2e-5 of float64
# and iou scores within 5e-5. Errors of embeddings measured on AMX, with such products in all layers: TACoS 4.0e-6,
# ActivityNet Captions 5.5e-6 (exact float32: 2.3e-6 and 2.0e-6). Errors of scores, emulated, from float64: ActivityNet
# Captions 6.2e-6 and iou 8.5e-6, HC-STVG (16 clips, 7 x 7) 6.6e-6 and iou 1.6e-5. A 5 x 5 kernel on 16 clips errs too
# much: charades_small 1.0e-4, iou 1.4e-4.
_SPLIT_KERNEL, _SPLIT_CLIPS = 7, 64  # a kernel of at least this width, or a map of at least so many clips
_PACK_CHANNELS = 32  # output channels transformed at a time: bounds the float64 intermediates


def can_use(algorithm: str, kernel: int) -> bool:
    """Whether an algorithm supports this kernel width on this process's instruction set."""
    isas = ALGORITHMS[algorithm].isas
    return kernel in ALGORITHMS[algorithm].kernels and (isas is None or cpu_isa() in isas)


def has_bf16() -> bool:
    """Whether the instruction set in use multiplies bf16."""
    return cpu_isa() in _BF16_ISAS


@dataclass(frozen=True)
class LayerChoice:
    """The choice for one layer: the algorithm, its products per video and channel pair, its packed weights in MiB."""

    algorithm: str
    products: int
    packed_mib: float


Rated = dict[LayerChoice, float]
"""Possible choice for a layer -> seconds for one video."""


def choose_algorithms(
    plan: ProposalPlan,
    widths: Sequence[tuple[int, int]],
    precision: str = "fp32",
    max_packed_mib: float | None = None,
    *,
    exact: bool = False,
    seconds: Sequence[Mapping[str, float]] | None = None,
) -> list[LayerChoice]:
    """Choose the fastest algorithm of every layer for one video.

    Args:
        plan: the plan.
        widths: (C_in, C_out) of every layer.
        precision: "fp32" or "bf16".
        max_packed_mib: limit of all packed weights; above it, layers fall to direct, first those that gain least per
            MiB. Direct weights are not limited. None for no limit.
        exact: fp32 multiplies float32 alone, see `candidates`.
        seconds: per layer the measured time of every candidate (`autotune`); None rates candidates by work counts:
            arithmetic plus one pass over the packed weights.

    Returns:
        One choice per layer. Without `seconds` the choices depend on sizes and the instruction set alone.
    """
    rated = [_rate(plan, number, *width, precision, exact) for number, width in enumerate(widths)]
    if seconds is not None:
        rated = [{one: taken[one.algorithm] for one in layer} for layer, taken in zip(rated, seconds, strict=True)]
    chosen = [_best(options) for options in rated]
    direct = [
        min((o for o in options if ALGORITHMS[o.algorithm].transform is None), key=options.__getitem__)
        for options in rated
    ]

    def gain_per_mib(number: int) -> float:
        saved_s = rated[number][direct[number]] - rated[number][chosen[number]]
        return saved_s / max(chosen[number].packed_mib - direct[number].packed_mib, 1e-9)

    for number in sorted(range(len(chosen)), key=gain_per_mib):
        if max_packed_mib is None or sum(choice.packed_mib for choice in chosen) <= max_packed_mib:
            break
        chosen[number] = direct[number]
    return chosen


def candidates(plan: ProposalPlan, c_in: int, precision: str, exact: bool = False) -> list[str]:
    """The algorithms that may run a layer.

    fp32 takes products of bf16 terms only if the scores stay within float32's tolerance, see `_SPLIT_KERNEL`.

    Args:
        plan: the plan.
        c_in: C_in.
        precision: "fp32" or "bf16".
        exact: leave out fp32 from bf16 terms, which keeps 16 bits of an operand instead of 24.
    """
    far = plan.kernel < _SPLIT_KERNEL and plan.num_clips < _SPLIT_CLIPS
    return [
        name
        for name, algorithm in ALGORITHMS.items()
        if precision in algorithm.precisions
        and can_use(name, plan.kernel)
        and not ((exact or far) and precision == "fp32" and algorithm.terms != (0, 0))
        and not (algorithm.transform is not None and algorithm.terms != (0, 0) and c_in < _SPECTRAL_CHANNELS)
    ]


def _best(rated: Rated) -> LayerChoice:
    best = min(rated, key=rated.__getitem__)
    if best.algorithm == "winograd":
        for one, seconds in rated.items():
            if one.algorithm == "fft" and seconds <= _NEAR * rated[best] and one.packed_mib <= _CACHED_MIB:
                return one
    return best


def _rate(plan: ProposalPlan, number: int, c_in: int, c_out: int, precision: str, exact: bool) -> Rated:
    rates = _FLOAT32_RATES | (_TILE_RATES if cpu_isa() in _TILE_ISAS else _DOT_RATES)
    rated = {}
    for name in candidates(plan, c_in, precision, exact):
        algorithm = ALGORITHMS[name]
        work: float | None = None  # products to charge at the rate; None charges the executed products
        if name == "runs-bf16":
            runs = cell_runs(plan, number)
            products, matrices, work = runs.products, plan.kernel**2, runs.cost
        elif algorithm.transform is None:
            products, matrices = int(plan.layers[number].taps.sum()), plan.kernel**2
        else:
            transform = algorithm.transform(plan.kernel)
            products = len(cover_with_tiles(plan, number, transform.m).outputs) * transform.products
            matrices = transform.tile**2
        packed = (2 * algorithm.terms[1] or 4) * matrices * c_in * c_out
        seconds = 2 * (work or products) * c_in * c_out / rates[name]
        if packed > _CACHED_MIB * 2**20:
            seconds += packed / _WEIGHT_BYTES_PER_S
        rated[LayerChoice(name, products, packed / 2**20)] = seconds
    return rated


class NativeProposalConv:
    """The stacked layers with their weights packed; safe to call from several threads.

    Args:
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded in.
        biases: per layer float32 [C_out].
        plan: the cells and taps to compute.
        algorithms: per layer a key of `ALGORITHMS`; see `choose_algorithms`.
        isa: instruction set; None for the process's choice.
    """

    def __init__(
        self,
        weights: Sequence[Float32],
        biases: Sequence[Float32],
        plan: ProposalPlan,
        algorithms: Sequence[str],
        isa: str | None = None,
    ) -> None:
        self.algorithms = tuple(algorithms)
        self.plan = plan
        self.native = _C.ProposalConv(isa=isa)
        self._out_width = len(biases[-1])
        for number, (weight, bias, algorithm) in enumerate(zip(weights, biases, algorithms, strict=True)):
            add_layer(self.native, plan, number, weight, bias, algorithm)

    @property
    def packed_mib(self) -> list[float]:
        """MiB of each layer's packed weights."""
        return [size / 2**20 for size in self.native.packed_bytes()]

    def __call__(self, inputs: Float32, out: Float32 | None = None, threads: int | None = None) -> Float32:
        """`reference.proposal_conv_packed` on NumPy arrays.

        Args:
            inputs: float32 [B, R_0, C_0], the 2D map at `plan.inputs`.
            out: result, float32 [B, P, C]; allocated if None.
            threads: see `host.num_threads`; the result does not depend on it.

        Returns:
            `out`. A video's rows do not depend on the other videos, bit for bit.
        """
        if out is None:
            out = np.empty((len(inputs), len(self.plan.layers[-1].cells), self._out_width), np.float32)
        self.native.run(inputs=inputs, out=out, threads=num_threads(threads))
        return out


def add_layer(
    native: _C.ProposalConv, plan: ProposalPlan, number: int, weight: Float32, bias: Float32, algorithm: str
) -> None:
    """Pack one layer's weights and append the layer.

    Args:
        native: the convolution to append to.
        plan: the cells and taps to compute.
        number: index into `plan.layers`.
        weight: float32 [C_out, C_in, k, k].
        bias: float32 [C_out].
        algorithm: a key of `ALGORITHMS`.
    """
    weight, bias = np.ascontiguousarray(weight), np.ascontiguousarray(bias)
    layer = plan.layers[number]
    cells_in = len(plan.layers[number - 1].cells if number else plan.inputs)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithms: expected some of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    make_transform, terms = ALGORITHMS[algorithm].transform, ALGORITHMS[algorithm].terms
    flat = weight.reshape(*weight.shape[:2], -1)
    common: dict[str, Any] = {"bias": bias, "cell_weights": layer.cell_weights, "cells_in": cells_in}
    split: dict[str, Any] = {"terms_a": terms[0], "terms_b": terms[1]}
    if algorithm == "runs-bf16":
        runs = cell_runs(plan, number)
        native.add_cell_runs(
            weight=flat,
            **common,
            slots=runs.slots,
            outputs=runs.outputs,
            starts=runs.starts,
            tile_taps=runs.tile_taps,
            tap_offsets=runs.tap_offsets,
            stride=runs.stride,
        )
        return
    if make_transform is None:
        native.add_direct(weight=flat, neighbours=layer.neighbours, **common, **split)
        return
    transform = make_transform(plan.kernel)
    cover: TileCover = cover_with_tiles(plan, number, transform.m)
    native.add_tiled(
        c_in=weight.shape[1],
        **common,
        bt=transform.bt.astype(np.float32),
        at=np.ascontiguousarray(transform.at, np.float32),
        inputs=cover.inputs,
        outputs=cover.outputs,
        **split,
    )
    for first in range(0, len(weight), _PACK_CHANNELS):
        points = transform.points(weight[first : first + _PACK_CHANNELS])
        native.pack_points(points=points, first=first, threads=num_threads())
