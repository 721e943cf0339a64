"""The transforms of FFT tiles on a device, as PyTorch operators `mmn_fast::*`; see `gpu_ops` for devices and symbols.

A spectrum of a 16 x 16 tile is 256 real planes: real and imaginary parts of 126 complex points, then four real points,
in the order of `conv_transforms.fourier`. The transform is orthogonal over 16: rounding a spectrum costs as much as
rounding the tile, and no plane exceeds the tile's largest value. Sums are float32, only what is stored is rounded.
"""

from __future__ import annotations

from math import isqrt

from torch import Tensor

from mmn_fast.kernels import native
from mmn_fast.kernels.conv_transforms import SPECTRAL_POINTS, SPECTRAL_TILE
from mmn_fast.kernels.gpu_operator import DTYPES, ELEMENTS, FLOAT, INT, check, operator, where

__all__ = ["fourier_cells", "fourier_tiles"]


@operator("(Tensor rows, Tensor inputs, Tensor(a!) spectra) -> ()", mutates=["spectra"])
def fourier_tiles(rows: Tensor, inputs: Tensor, spectra: Tensor) -> None:
    """Spectra of the tiles that cover a map.

    Equivalent to, but for the order of the planes:
        tiles = rows[inputs].masked_fill((inputs < 0)[..., None, None], 0)
        spectra[...] = torch.view_as_real(torch.fft.rfft2(tiles, dim=(1, 2))) * scale

    with scale 1 / 256, times the square root of 2 for complex points.

    Args:
        rows: dtype [R, B, C].
        inputs: int32 [tiles, 256], rows under the tile's places, -1 for zero.
        spectra: dtype [256, tiles, B, C], written.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape or layout differs.
    """
    check("rows", rows, ELEMENTS, (None, None, None))
    _, videos, channels = rows.shape
    check("inputs", inputs, INT, (None, SPECTRAL_POINTS), rows.device)
    check("spectra", spectra, (rows.dtype,), (SPECTRAL_POINTS, len(inputs), videos, channels), rows.device)
    native.extension.gpu_fourier_tiles(
        rows.data_ptr(),
        inputs.data_ptr(),
        spectra.data_ptr(),
        len(inputs),
        videos,
        channels,
        DTYPES[rows.dtype],
        *where(rows),
    )


@operator(
    "(Tensor spectra, Tensor outputs, Tensor bias, Tensor cell_weights, Tensor(a!) out) -> ()",
    mutates=["out"],
)
def fourier_cells(spectra: Tensor, outputs: Tensor, bias: Tensor, cell_weights: Tensor, out: Tensor) -> None:
    """Spectra back to the first m x m places of every tile, then bias, ReLU and cell weight, each cell to its row.

    Equivalent to, with `places` [tiles, m * m, B, C] what undoes `fourier_tiles`:
        here = outputs >= 0
        out[outputs[here]] = ((places + bias).relu() * cell_weights[outputs][..., None, None])[here]

    Args:
        spectra: dtype [256, tiles, B, C].
        outputs: int32 [tiles, m * m], rows of `out`, each once, or -1; m 1 to 16.
        bias: float32 [C].
        cell_weights: float32 [cells].
        out: dtype [cells, B, C]; nothing but those rows is written.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    check("spectra", spectra, ELEMENTS, (SPECTRAL_POINTS, None, None, None))
    _, tiles, videos, channels = spectra.shape
    check("outputs", outputs, INT, (tiles, None), spectra.device)
    m = isqrt(outputs.shape[1])
    if m * m != outputs.shape[1] or not 1 <= m <= SPECTRAL_TILE:
        raise ValueError(f"outputs: expected m * m places of a tile, m 1 to {SPECTRAL_TILE}, got {outputs.shape[1]}")
    check("bias", bias, FLOAT, (channels,), spectra.device)
    check("cell_weights", cell_weights, FLOAT, (None,), spectra.device)
    check("out", out, (spectra.dtype,), (len(cell_weights), videos, channels), spectra.device)
    native.extension.gpu_fourier_cells(
        spectra.data_ptr(),
        outputs.data_ptr(),
        bias.data_ptr(),
        cell_weights.data_ptr(),
        out.data_ptr(),
        tiles,
        videos,
        channels,
        m,
        DTYPES[spectra.dtype],
        *where(spectra),
    )
