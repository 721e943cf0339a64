"""The transforms of FFT tiles on a device, as PyTorch operators `mmn_fast::*`; see `video_ops` for devices and symbols.

A spectrum of an n x n tile is n^2 real planes: real and imaginary parts of n^2 / 2 - 2 complex points, then four real
points, in the order of `transforms.fourier`. The transform is orthogonal over n: rounding a spectrum costs as much
as rounding the tile, and no plane exceeds the tile's largest value. Sums are float32; only stored values are rounded.
"""

from __future__ import annotations

from collections.abc import Container
from math import isqrt

import torch
from torch import Tensor

from mmn_fast.kernels import host
from mmn_fast.kernels.gpu.operator import DTYPES, FLOAT, INT, check, operator, where
from mmn_fast.kernels.transforms import SPECTRAL_TILES

__all__ = ["fourier_cells", "fourier_tiles"]

_ELEMENTS = (torch.float32, torch.float16)
_TILE_PLACES = f"n * n places of a tile, n one of {', '.join(map(str, SPECTRAL_TILES))}"


def _side(name: str, places: int, sides: Container[int], expected: str) -> int:
    """The side of a square with this many places."""
    side = isqrt(places)
    if side * side != places or side not in sides:
        raise ValueError(f"{name}: expected {expected}, got {places}")
    return side


@operator("(Tensor rows, Tensor inputs, Tensor(a!) spectra) -> ()", mutates=["spectra"])
def fourier_tiles(rows: Tensor, inputs: Tensor, spectra: Tensor) -> None:
    """Compute the spectra of the tiles that cover a map.

    Equivalent to the following, except for the order of the planes:
        tiles = rows[inputs].masked_fill((inputs < 0)[..., None, None], 0)
        spectra[...] = torch.view_as_real(torch.fft.rfft2(tiles, dim=(1, 2))) * scale

    with scale 1 / n^2, times the square root of 2 for complex points.

    Args:
        rows: float16 or float32 [R, B, C].
        inputs: int32 [tiles, n * n], the row at each place of a tile, -1 for zero; n is 12, 16 or 24.
        spectra: dtype [n * n, tiles, B, C], written.

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape or layout differs.
    """
    check("rows", rows, _ELEMENTS, (None, None, None))
    _, videos, channels = rows.shape
    check("inputs", inputs, INT, (None, None), rows.device)
    n = _side("inputs", inputs.shape[1], SPECTRAL_TILES, _TILE_PLACES)
    check("spectra", spectra, (rows.dtype,), (n * n, len(inputs), videos, channels), rows.device)
    host.extension.gpu_fourier_tiles(
        rows=rows.data_ptr(),
        inputs=inputs.data_ptr(),
        spectra=spectra.data_ptr(),
        tiles=len(inputs),
        videos=videos,
        channels=channels,
        n=n,
        dtype=DTYPES[rows.dtype],
        **where(rows),
    )


@operator(
    "(Tensor spectra, Tensor outputs, Tensor bias, Tensor cell_weights, Tensor(a!) out) -> ()",
    mutates=["out"],
)
def fourier_cells(spectra: Tensor, outputs: Tensor, bias: Tensor, cell_weights: Tensor, out: Tensor) -> None:
    """Turn spectra back to the first m x m places of every tile, apply bias, ReLU and cell weight, store cells as rows.

    Equivalent to the following, where `places` [tiles, m * m, B, C] is the inverse of `fourier_tiles`:
        here = outputs >= 0
        out[outputs[here]] = ((places + bias).relu() * cell_weights[outputs][..., None, None])[here]

    Args:
        spectra: float16 or float32 [n * n, tiles, B, C]; n is 12, 16 or 24.
        outputs: int32 [tiles, m * m], rows of `out`, each once, or -1; m is 1 to n.
        bias: float32 [C].
        cell_weights: float32 [cells].
        out: dtype [cells, B, C]; only the rows in `outputs` are written.

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    check("spectra", spectra, _ELEMENTS, (None, None, None, None))
    planes, tiles, videos, channels = spectra.shape
    n = _side("spectra", planes, SPECTRAL_TILES, _TILE_PLACES)
    check("outputs", outputs, INT, (tiles, None), spectra.device)
    m = _side("outputs", outputs.shape[1], range(1, n + 1), f"m * m places of a tile, m 1 to {n}")
    check("bias", bias, FLOAT, (channels,), spectra.device)
    check("cell_weights", cell_weights, FLOAT, (None,), spectra.device)
    check("out", out, (spectra.dtype,), (len(cell_weights), videos, channels), spectra.device)
    host.extension.gpu_fourier_cells(
        spectra=spectra.data_ptr(),
        outputs=outputs.data_ptr(),
        bias=bias.data_ptr(),
        cell_weights=cell_weights.data_ptr(),
        out=out.data_ptr(),
        tiles=tiles,
        videos=videos,
        channels=channels,
        n=n,
        m=m,
        dtype=DTYPES[spectra.dtype],
        **where(spectra),
    )
