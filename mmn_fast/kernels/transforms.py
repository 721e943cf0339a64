"""Transforms that turn a convolution over a tile into one product per point: Winograd's, with exact matrices, and the
discrete Fourier transform.

A transform of tile n and kernel k gives m = n - k + 1 outputs a side. With `bt` [n, n] and `at` [m, n],

    outputs = at ((weight_points w) * (bt x bt^T)) at^T

`weight_points` maps k x k weights w to points. Spectral points pair up to complex numbers, in the order of
csrc/cpu/kernels/tile_transform.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

from mmn_fast.arrays import Float32, Float64, Int64

# Interpolation points besides infinity. They are small and of both signs, so that the matrices' entries stay near 1
# (Barabasz et al., arXiv 1803.10986); with 7/4 in place of 2 the rounding errors of a layer are a fifth smaller.
_WINOGRAD_POINTS = [Fraction(p) for p in ("0", "1", "-1", "1/2", "-1/2", "7/4", "-7/4")]
SPECTRAL_TILE = 16
"""Inputs a side of a spectral tile on a CPU; on a GPU one of `SPECTRAL_TILES`."""
SPECTRAL_TILES = (12, 16, 24)
REAL_POINTS = 4
"""Real points of a spectrum; they come last."""


@dataclass(frozen=True, eq=False)
class TileTransform:
    """One transform.

    Attributes:
        tile: n, inputs a side: 8 for Winograd, one of `SPECTRAL_TILES` for the spectral one.
        m: outputs a side.
        bt: float64 [n, n].
        at: float64 [m, n].
        weight_points: float64 [n * n, k * k].
        pairs: number of complex points, two real values each; the other points are real.
    """

    tile: int
    m: int
    bt: Float64
    at: Float64
    weight_points: Float64
    pairs: int = 0

    @property
    def points_per_tile(self) -> int:
        """Real values per tile and channel after the transform."""
        return self.tile**2

    @property
    def products(self) -> int:
        """Real multiplications per tile and channel pair; a complex multiplication counts as four."""
        return self.points_per_tile + 2 * self.pairs

    def points(self, weight: Float32) -> Float32:
        """Transform [C_out, C_in, k, k] in float64 to float32 [n * n, C_out, C_in]."""
        taps_first = weight.reshape(weight.shape[0] * weight.shape[1], -1).T.astype(np.float64)
        return (self.weight_points @ taps_first).astype(np.float32).reshape(-1, *weight.shape[:2])


@cache
def winograd(kernel: int) -> TileTransform:
    """Winograd's F(m, k) on tiles of 8, m = 9 - k; computed exactly in rationals, rounded once."""
    n, m = len(_WINOGRAD_POINTS) + 1, len(_WINOGRAD_POINTS) + 2 - kernel
    if m < 1:
        raise ValueError(f"kernel: expected 1 to {n}, got {kernel}")
    finite = _WINOGRAD_POINTS
    at = [[point**row for point in finite] + [Fraction(int(row == m - 1))] for row in range(m)]
    g, bt = [], []
    for point in finite:
        others = [other for other in finite if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        g.append([point**tap / scale for tap in range(kernel)])
        bt.append([*_polynomial(others), Fraction(0)])
    g.append([Fraction(0)] * (kernel - 1) + [Fraction(1)])
    bt.append(_polynomial(finite))
    g64 = np.array(g, np.float64)
    weight_points = np.kron(g64, g64).astype(np.float64)
    return TileTransform(n, m, np.array(bt, np.float64), np.array(at, np.float64), weight_points)


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


@cache
def fourier(kernel: int, tile: int = SPECTRAL_TILE) -> TileTransform:
    """The discrete Fourier transform of real inputs, m = tile + 1 - k."""
    n, m, last = tile, tile + 1 - kernel, tile // 2
    if m < 1:
        raise ValueError(f"kernel: expected 1 to {n}, got {kernel}")
    angles = 2 * np.pi * np.outer(np.arange(last + 1), np.arange(n)) / n
    bt = np.concatenate([np.cos(angles), np.sin(angles[1:-1])])
    once = np.isin(np.arange(n), (0, last))  # these two cosines stand for one frequency each, every other for a pair
    at = (np.where(once, 1, 2)[:, None] * bt / n).T[:m]
    # The product with the conjugate spectrum correlates, as a convolution layer does.
    frequencies = _frequencies(last)
    tap, tap2 = (np.exp(2j * np.pi * np.outer(axis, np.arange(kernel)) / n) for axis in frequencies.T)
    spectrum = (tap[:, :, None] * tap2[:, None, :]).reshape(-1, kernel * kernel)
    pairs = np.stack([spectrum.real, spectrum.imag], 1)[:-REAL_POINTS].reshape(-1, kernel * kernel)
    points = np.concatenate([pairs, spectrum.real[-REAL_POINTS:]])
    return TileTransform(n, m, bt, at, points, len(pairs) // 2)


def _frequencies(last: int) -> Int64:
    """(u, v) of every spectral point of tiles of 2 `last`, in the order of csrc/cpu/kernels/tile_transform.h."""
    inner = range(1, last)
    points = [point for u in inner for v in inner for point in ((u, v), (u, -v))]
    points += [point for v in inner for point in ((0, v), (last, v))]
    points += [point for u in inner for point in ((u, 0), (u, last))]
    points += [(0, 0), (0, last), (last, 0), (last, last)]
    return np.array(points)
