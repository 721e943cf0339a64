"""Emulates AMX in NumPy, on any host: FFT layers whose operands are bf16 terms.

Operands are rounded like in csrc's gemm.h (x = high + low, each to bf16; the product of both low terms is left out).
Spectra are float32; products of terms are exact in float32, and their sums are float32. The order of these sums is not
emulated; its rounding is of float32's size on every instruction set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.geometry import ProposalPlan, cover_with_tiles
from mmn_fast.kernels.transforms import SPECTRAL_TILE, fourier

_POINTS_AT_ONCE = 16


def round_to_bf16(x: Float32) -> Float32:
    """Round to the nearest bf16 values, ties to even; the result is float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def split(x: Float32, terms: int) -> list[Float32]:
    """Split float32 values into bf16 terms, as float32, the largest first; 0 terms give the values themselves."""
    if terms == 0:
        return [x]
    found, rest = [], np.asarray(x, np.float32)
    for _ in range(terms):
        found.append(round_to_bf16(rest))
        rest = rest - found[-1]
    return found


def product(a: list[Float32], b: list[Float32]) -> Float32:
    """Compute a @ b of operands in terms, without the product of both low terms."""
    total = a[0] @ b[0]
    for low in a[1:]:
        total = low @ b[0] + total
    for low in b[1:]:
        total = a[0] @ low + total
    return total


def spectral_layer(
    x: Float32, weight: Float32, bias: Float32, plan: ProposalPlan, number: int, terms: tuple[int, int]
) -> Float32:
    """Compute one layer by FFT tiles.

    Args:
        x: [B, R, C_in], the input cells.
        weight: [C_out, C_in, k, k].
        bias: [C_out].
        plan: the proposal plan.
        number: the layer's index.
        terms: bf16 terms of inputs and weights; (0, 0) for float32 operands.

    Returns:
        float32 [B, R', C_out].
    """
    k, n = plan.kernel, SPECTRAL_TILE
    cover = cover_with_tiles(plan, number, fourier(k).m)
    batch, _, c_in = x.shape
    c_out = len(weight)
    padded = np.concatenate([x, np.zeros((batch, 1, c_in), np.float32)], axis=1)  # index -1 reads the zero
    tiles = padded[:, cover.inputs].reshape(batch, len(cover.inputs), n, n, c_in)
    spectra = np.fft.rfft2(tiles, axes=(2, 3)).astype(np.complex64).reshape(-1, n * (n // 2 + 1), c_in)
    taps = weight.transpose(2, 3, 1, 0).astype(np.float64)
    found = np.empty((len(spectra), spectra.shape[1], c_out), np.complex64)
    filters = np.conj(np.fft.fft2(taps, (n, n), axes=(0, 1))[:, : n // 2 + 1]).astype(np.complex64)
    filters = filters.reshape(-1, c_in, c_out)
    for point in range(spectra.shape[1]):
        real, imaginary = (split(part, terms[0]) for part in (spectra[:, point].real, spectra[:, point].imag))
        u, v = (split(part, terms[1]) for part in (filters[point].real, filters[point].imag))
        found[:, point].real = product(real, u) - product(imaginary, v)
        found[:, point].imag = product(real, v) + product(imaginary, u)
    sums = np.fft.irfft2(found.reshape(*tiles.shape[:3], n // 2 + 1, c_out), (n, n), axes=(2, 3))
    m = fourier(k).m
    sums = sums[:, :, :m, :m].reshape(batch, -1, c_out).astype(np.float32)
    layer, outputs = plan.layers[number], cover.outputs.reshape(-1)
    out = np.empty((batch, len(layer.cells), c_out), np.float32)
    out[:, outputs[outputs >= 0]] = sums[:, outputs >= 0]
    return np.maximum(out + bias, 0) * layer.cell_weights[:, None]


def spectral_stack(
    x: Float32,
    weights: Sequence[Float32],
    biases: Sequence[Float32],
    plan: ProposalPlan,
    terms: Sequence[tuple[int, int]],
) -> Float32:
    """Compute all layers, each with its own number of terms: [B, R_0, C_0] to float32 [B, P, C]."""
    for number, (weight, bias, count) in enumerate(zip(weights, biases, terms, strict=True)):
        x = spectral_layer(x, weight, bias, plan, number, count)
    return x
