"""Transforms in whose domain a convolution over a tile is a product per point: Winograd's, with exact matrices, and the
discrete Fourier transform's.

A transform of tile n and kernel k gives m = n - k + 1 outputs a side. With `bt` [n, n] and `at` [m, n],

    outputs = at ((g_points w) * (bt x bt^T)) at^T

where `weight_points` is the map from k x k weights to points. Spectral points pair up to complex numbers: their order
is that of csrc/cpu/tile_transform.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

# Besides infinity. Small and of both signs, so that the matrices' entries stay near 1 (Barabasz et al., arXiv
# 1803.10986); with 7/4 in place of 2 the rounding errors of a layer are a fifth smaller.
_WINOGRAD_POINTS = [Fraction(p) for p in ("0", "1", "-1", "1/2", "-1/2", "7/4", "-7/4")]
SPECTRAL_TILE = 16
SPECTRAL_POINTS = SPECTRAL_TILE**2
"""Real values of a tile's spectrum: two for each complex point, one for each of the last, real ones."""
REAL_POINTS = 4
_COSINES = SPECTRAL_TILE // 2 + 1


@dataclass(frozen=True, eq=False)
class TileTransform:
    """One transform.

    Attributes:
        tile: n, inputs a side: 8 for Winograd, 16 for the spectral one.
        m: outputs a side.
        bt: float64 [n, n].
        at: float64 [m, n].
        weight_points: float64 [n * n, k * k].
    """

    tile: int
    m: int
    bt: Float64
    at: Float64
    weight_points: Float64

    @cached_property
    def products(self) -> int:
        """Real multiplications per tile and channel pair: a complex one is four."""
        return self.tile**2 if self.tile != SPECTRAL_TILE else 2 * (SPECTRAL_POINTS - REAL_POINTS) + REAL_POINTS

    def points(self, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Transform [C_out, C_in, k, k] in float64 to float32 [n * n, C_out, C_in]."""
        taps_first = weight.reshape(weight.shape[0] * weight.shape[1], -1).T.astype(np.float64)
        return (self.weight_points @ taps_first).astype(np.float32).reshape(-1, *weight.shape[:2])


@cache
def winograd(kernel: int) -> TileTransform:
    """Winograd's F(m, k) on tiles of 8, m = 9 - k: exact in rationals, rounded once."""
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
def fourier(kernel: int) -> TileTransform:
    """The discrete Fourier transform on tiles of 16, m = 17 - k, of real inputs."""
    n, m = SPECTRAL_TILE, SPECTRAL_TILE + 1 - kernel
    if m < 1:
        raise ValueError(f"kernel: expected 1 to {n}, got {kernel}")
    places = np.arange(n)
    angles = 2 * np.pi * np.outer(np.arange(_COSINES), places) / n
    bt = np.concatenate([np.cos(angles), np.sin(angles[1:-1])])
    once = np.isin(np.arange(n), (0, n // 2))  # cos 0 and cos 8 stand for one frequency, the others for a pair
    at = (np.where(once, 1, 2)[:, None] * bt / n).T[:m]
    # The product with the conjugate spectrum correlates, as a convolution layer does.
    tap = np.exp(2j * np.pi * np.outer(_frequencies()[:, 0], np.arange(kernel)) / n)
    tap2 = np.exp(2j * np.pi * np.outer(_frequencies()[:, 1], np.arange(kernel)) / n)
    spectrum = (tap[:, :, None] * tap2[:, None, :]).reshape(-1, kernel * kernel)
    pairs = np.stack([spectrum.real, spectrum.imag], 1)[:-4].reshape(-1, kernel * kernel)
    return TileTransform(n, m, bt, at, np.concatenate([pairs, spectrum.real[-4:]]))


def _frequencies() -> npt.NDArray[np.int64]:
    """(u, v) of every spectral point, in the order of csrc/cpu/tile_transform.h; the last four are real."""
    last = _COSINES - 1
    inner = range(1, last)
    points = [point for u in inner for v in inner for point in ((u, v), (u, -v))]
    points += [point for v in inner for point in ((0, v), (last, v))]
    points += [point for u in inner for point in ((u, 0), (u, last))]
    points += [(0, 0), (0, last), (last, 0), (last, last)]
    return np.array(points)
