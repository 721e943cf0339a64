"""The transforms of FFT tiles equal PyTorch's in float64: the kernels' twins on the CPU, the kernels on a device."""

from __future__ import annotations

import pytest
import torch

from mmn_fast.kernels.gpu.fourier_ops import fourier_cells, fourier_tiles
from mmn_fast.kernels.transforms import REAL_POINTS, SPECTRAL_TILES, fourier
from tests.kernels.conftest import PRECISIONS
from tests.tolerances import check_close

tiles_of_each_size = pytest.mark.parametrize("n", SPECTRAL_TILES)


@pytest.fixture(params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _matrix(n: int) -> torch.Tensor:
    """Make the transform's matrix, float64 [n * n, n * n]: orthogonal rows in the planes' order of `transforms`."""
    points = torch.from_numpy(fourier(n, n).weight_points.copy())  # each tap's conjugate spectrum for one output
    points[1:-REAL_POINTS:2] *= -1
    points[:-REAL_POINTS] *= 2**0.5
    return points / n


def _tables(tiles: int, rows: int, places: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, rows, (tiles, places), generator=generator, dtype=torch.int32)


@tiles_of_each_size
@pytest.mark.parametrize(
    ("tiles", "B", "C"), [(1, 1, 1), (3, 2, 5), (2, 3, 34), (1, 1, 64), (0, 1, 8), (2, 0, 8), (2, 1, 0)]
)
def test_tiles_become_orthogonal_spectra(n: int, tiles: int, B: int, C: int, precision: str, device: str) -> None:
    rows = _random(40, B, C).to(PRECISIONS[precision])
    inputs = _tables(tiles, 40, n * n, seed=tiles)
    spectra = torch.full((n * n, tiles, B, C), torch.nan, dtype=rows.dtype, device=device)
    fourier_tiles(rows.to(device), inputs.to(device), spectra)
    windows = rows.double()[inputs.long().clamp(min=0)] * (inputs >= 0)[..., None, None]
    expected = torch.einsum("pq,tqbc->ptbc", _matrix(n) / n, windows)
    check_close(spectra.cpu().double(), expected, "fourier_tiles", precision)


@tiles_of_each_size
def test_the_planes_are_those_of_the_library_transform(n: int, device: str) -> None:
    """torch.fft gives F(u, v) and F(u, -v) of every inner pair, and the mean; so it confirms the planes' order."""
    tile = _random(n, n)
    spectra = torch.empty(n * n, 1, 1, 1, device=device)
    inputs = torch.arange(n * n, dtype=torch.int32)[None]
    fourier_tiles(tile.reshape(n * n, 1, 1).to(device), inputs.to(device), spectra)
    found, spectrum = spectra.flatten().cpu().double(), torch.fft.fft2(tile.double()) * 2**0.5 / n**2
    inner = [(u, w) for u in range(1, n // 2) for v in range(1, n // 2) for w in (v, -v)]
    expected = torch.stack([torch.view_as_real(spectrum[u, v]) for u, v in inner]).flatten()
    check_close(found[: len(expected)], expected, "fourier_tiles", "fp32")
    check_close(found[-REAL_POINTS], tile.double().mean(), "fourier_tiles", "fp32")


@pytest.mark.parametrize(
    ("n", "m", "tiles", "B", "C"),
    [
        *((12, 1, 1, 1, 1), (12, 8, 2, 3, 34), (12, 12, 1, 2, 33)),
        *((16, 1, 1, 1, 1), (16, 8, 2, 3, 34), (16, 12, 3, 1, 5), (16, 16, 1, 2, 32)),
        *((24, 1, 1, 1, 1), (24, 16, 2, 1, 34), (24, 20, 1, 2, 5), (24, 24, 1, 1, 16)),
    ],
)
def test_spectra_become_cells(n: int, m: int, tiles: int, B: int, C: int, precision: str, device: str) -> None:
    dtype = PRECISIONS[precision]
    spectra = (_random(n * n, tiles, B, C) / 4).to(dtype)
    # Each row appears once; some places have none.
    order = torch.randperm(tiles * m * m + 3, generator=torch.Generator().manual_seed(m))[: tiles * m * m]
    outputs = torch.where(order % 5 == 4, -1, order).int().view(tiles, m * m)
    cells = tiles * m * m + 3
    bias, cell_weights = _random(C, seed=1), _random(cells, seed=2)
    out = torch.full((cells, B, C), 7.0, dtype=dtype, device=device)
    fourier_cells(*(tensor.to(device) for tensor in (spectra, outputs, bias, cell_weights)), out)
    places = torch.einsum("pq,ptbc->tqbc", _matrix(n) * n, spectra.double()).view(tiles, n, n, B, C)[:, :m, :m]
    places = places.flatten(1, 2)
    expected = torch.full((cells, B, C), 7.0, dtype=torch.float64)
    here = outputs >= 0
    where = outputs[here].long()
    expected[where] = (places[here] + bias).relu() * cell_weights[where, None, None]
    check_close(out.cpu().double(), expected, "fourier_cells", precision)


@tiles_of_each_size
def test_a_nan_stays_in_its_tile_its_video_and_its_channel(n: int, device: str) -> None:
    places = n * n
    rows = _random(2 * places, 2, 4)
    rows[3, 1, 2] = torch.nan
    inputs = torch.arange(2 * places, dtype=torch.int32).view(2, places)
    spectra = torch.zeros(places, 2, 2, 4, device=device)
    fourier_tiles(rows.to(device), inputs.to(device), spectra)
    assert spectra[:, 0, 1, 2].isnan().any()
    out = torch.zeros(2 * places, 2, 4, device=device)
    fourier_cells(spectra, inputs.to(device), torch.zeros(4, device=device), torch.ones(2 * places, device=device), out)
    spoiled = torch.zeros(2 * places, 2, 4, dtype=torch.bool)
    spoiled[:places, 1, 2] = True
    assert torch.equal(out.isnan().cpu(), spoiled)
