"""proposal_conv through discrete Fourier transforms of 16 x 16 tiles, in Triton.

Per layer three kernels: windows to spectra, one matrix product per spectral point, spectra to needed cells. The real
spectrum of a tile has 256 values: 126 complex points and four real ones, in the order of `conv_transforms.fourier`. The
transforms are products with one constant matrix, orthogonal but for a power of two: rounding a spectrum costs as much
as rounding the tile, and a spectrum cannot exceed the largest value that it stands for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mmn_fast.geometry import FloatArray, ProposalPlan, cover_with_tiles, input_cells
from mmn_fast.kernels.conv_transforms import SPECTRAL_TILE, Float64, fourier
from mmn_fast.kernels.gather_choices import GatherConfig
from mmn_fast.kernels.gather_schedule import side_of_input
from mmn_fast.kernels.triton_stack import ConfigFor, ConvStack, round_up

POINTS = SPECTRAL_TILE**2
REAL_POINTS = 4
PAIRS = (POINTS - REAL_POINTS) // 2
_POINTS: tl.constexpr = tl.constexpr(POINTS)
_PAIRED: tl.constexpr = tl.constexpr(2 * PAIRS)
_PAIRS: tl.constexpr = tl.constexpr(PAIRS)
BLOCK_POINTS, BLOCK_CHANNELS, BLOCK_K = 64, 64, 64
TRANSFORM_BLOCKS = {"BLOCK_P": BLOCK_POINTS, "BLOCK_C": BLOCK_CHANNELS, "BLOCK_K": BLOCK_K}
TRANSFORM_OPTIONS = {"num_warps": 4, "num_stages": 3}


@triton.jit
def forward_kernel(
    x_ptr,  # [rows, B, CHANNELS]
    matrix_ptr,  # [256, 256]
    inputs_ptr,  # int32 [tiles, 256]: rows under each tile, -1 where the map is known to be zero
    spectra_ptr,  # [256, tiles * B, CHANNELS]
    tile_rows,  # tiles * B
    videos,
    CHANNELS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Spectra of the windows under all tiles."""
    tile_row = tl.program_id(0)
    tile = tile_row // videos
    video = tile_row - tile * videos
    point = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for k0 in range(0, _POINTS, BLOCK_K):
        place = k0 + tl.arange(0, BLOCK_K)
        row = tl.load(inputs_ptr + tile * _POINTS + place)
        x_rows = x_ptr + (tl.maximum(row, 0) * videos + video).to(tl.int64) * CHANNELS
        keep = (row >= 0)[:, None] & (channel < CHANNELS)[None, :]
        x = tl.load(x_rows[:, None] + channel[None, :], mask=keep, other=0.0)
        matrix = tl.load(matrix_ptr + point[:, None] * _POINTS + place[None, :])
        acc = tl.dot(matrix, x, acc, input_precision="ieee")
    out = (point.to(tl.int64) * tile_rows + tile_row) * CHANNELS
    spectra = acc.to(spectra_ptr.dtype.element_ty)
    tl.store(spectra_ptr + out[:, None] + channel[None, :], spectra, mask=(channel < CHANNELS)[None, :])


@triton.jit
def product_kernel(
    spectra_ptr,  # [256, tiles * B, C_IN]
    weights_ptr,  # [3 * 126 + 4, C_PAD, N_PAD]: Im, Re, -Im of every pair, then the real points
    out_ptr,  # [256, tiles * B, C_OUT]
    tile_rows,
    weight_scale,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    C_PAD: tl.constexpr,
    N_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One real value of every point's product: the real or the imaginary part of a pair, or a real point."""
    K_STEPS: tl.constexpr = C_PAD // BLOCK_K
    value = tl.program_id(2)
    paired = value < _PAIRED
    part = value % 2
    # Re = Re Re + Im (-Im); Im = Re Im + Im Re: two neighbouring planes of weights each.
    x_plane = tl.where(paired, value - part, value)
    w_plane = tl.where(paired, 3 * (value // 2) + 1 - part, value + _PAIRS)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    held = tl.minimum(row, tile_rows - 1)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    x_rows = spectra_ptr + held.to(tl.int64) * C_IN
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(tl.where(paired, 2 * K_STEPS, K_STEPS)):
        half = step // K_STEPS
        k0 = (step - half * K_STEPS) * BLOCK_K
        x_shift = (x_plane + half).to(tl.int64) * tile_rows * C_IN + k0
        if C_IN % BLOCK_K == 0:
            x = tl.load(x_rows[:, None] + (x_shift + offs_k)[None, :])
        else:
            x = tl.load(x_rows[:, None] + (x_shift + offs_k)[None, :], mask=(k0 + offs_k < C_IN)[None, :], other=0.0)
        w_rows = ((w_plane + half) * C_PAD + k0 + offs_k).to(tl.int64) * N_PAD
        w = tl.load(weights_ptr + w_rows[:, None] + col[None, :])
        acc = tl.dot(x, w, acc, input_precision="ieee")
    place = (value.to(tl.int64) * tile_rows + held) * C_OUT
    keep = (row < tile_rows)[:, None] & (col < C_OUT)[None, :]
    sums = (acc * weight_scale).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place[:, None] + col[None, :], sums, mask=keep)


@triton.jit
def inverse_kernel(
    spectra_ptr,  # [256, tiles * B, CHANNELS]
    matrix_ptr,  # [OUTPUTS_PAD, 256]
    bias_ptr,  # float32 [CHANNELS]
    outputs_ptr,  # int32 [tiles, OUTPUTS_PAD]: rows of the layer's cells, -1 where a result is not needed
    cell_weights_ptr,  # float32 [cells]
    out_ptr,  # [cells, B, CHANNELS]
    tile_rows,
    videos,
    OUTPUTS_PAD: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Spectra back to cells, then bias, ReLU and cell weight; only needed cells are stored."""
    tile_row = tl.program_id(0)
    tile = tile_row // videos
    video = tile_row - tile * videos
    output = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for k0 in range(0, _POINTS, BLOCK_K):
        point = k0 + tl.arange(0, BLOCK_K)
        rows = spectra_ptr + (point.to(tl.int64) * tile_rows + tile_row) * CHANNELS
        spectrum = tl.load(rows[:, None] + channel[None, :], mask=(channel < CHANNELS)[None, :], other=0.0)
        matrix = tl.load(matrix_ptr + output[:, None] * _POINTS + point[None, :])
        acc = tl.dot(matrix, spectrum, acc, input_precision="ieee")
    cell = tl.load(outputs_ptr + tile * OUTPUTS_PAD + output)
    keep = (cell >= 0)[:, None] & (channel < CHANNELS)[None, :]
    bias = tl.load(bias_ptr + channel, mask=channel < CHANNELS, other=0.0)
    scale = tl.load(cell_weights_ptr + cell, mask=cell >= 0, other=0.0)
    # Not maximum(): it may drop a NaN, which a ReLU keeps.
    sums = acc + bias[None, :]
    sums = tl.where(sums < 0, 0.0, sums) * scale[:, None]
    place = (tl.maximum(cell, 0) * videos + video).to(tl.int64) * CHANNELS
    tl.store(out_ptr + place[:, None] + channel[None, :], sums.to(out_ptr.dtype.element_ty), mask=keep)


@cache
def orthogonal_matrix() -> Float64:
    """float64 [256, 256] from a tile's places to its spectral values, orthogonal."""
    matrix = fourier(SPECTRAL_TILE).weight_points.copy()  # the conjugate spectrum of every place
    matrix[1 : 2 * PAIRS : 2] *= -1
    matrix[: 2 * PAIRS] *= np.sqrt(2)
    return matrix / SPECTRAL_TILE


def transform_matrices(kernel: int) -> tuple[Float64, Float64]:
    """The forward matrix [256, 256] and the inverse one, [m * m rounded up, 256] with zero rows at the end.

    The forward one is orthogonal divided by 16, so that point (0, 0) is a tile's mean, and the inverse undoes it.
    """
    m = fourier(kernel).m
    matrix = orthogonal_matrix()
    places = (np.arange(m)[:, None] * SPECTRAL_TILE + np.arange(m)).reshape(-1)
    inverse = np.zeros((round_up(m * m, BLOCK_POINTS), POINTS))
    inverse[: m * m] = matrix.T[places] * SPECTRAL_TILE
    return matrix / SPECTRAL_TILE, inverse


def spectral_weights(weight: FloatArray) -> tuple[FloatArray, float]:
    """Weights at every spectral point, and the power of two that was divided out to bring the largest to 1 or less.

    Args:
        weight: float32 [C_out, C_in, k, k].

    Returns:
        float32 [3 * 126 + 4, C_in, C_out]: Im, Re and -Im of every pair, then the real points; and the power of two.
    """
    points = fourier(weight.shape[2]).points(weight).transpose(0, 2, 1)
    largest = float(np.abs(points).max(initial=0))
    scale = 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 1.0
    points = points / np.float32(scale)
    re, im = points[: 2 * PAIRS : 2], points[1 : 2 * PAIRS : 2]
    paired = np.stack([im, re, -im], axis=1).reshape(3 * PAIRS, *points.shape[1:])
    return np.concatenate([paired, points[2 * PAIRS :]]), scale


class _Layer:
    """One layer on the device: its spectral weights, bias, and which rows its tiles read and write."""

    def __init__(
        self,
        number: int,
        weight: FloatArray,
        bias: FloatArray,
        plan: ProposalPlan,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.c_out, self.c_in = weight.shape[:2]
        m, layer = fourier(plan.kernel).m, plan.layers[number]
        cover = cover_with_tiles(plan, number, m)
        at = input_cells(plan, number) @ [side_of_input(plan, number), 1]
        inputs = np.where(cover.inputs < 0, -1, at[cover.inputs]).astype(np.int32)
        last = number + 1 == len(plan.layers)
        places = np.arange(len(layer.cells)) if last else layer.cells @ [layer.side, 1]
        cell_weights = layer.cell_weights if last else layer.weights.reshape(-1)
        outputs = np.full((len(cover.outputs), round_up(m * m, BLOCK_POINTS)), -1, np.int32)
        outputs[:, : m * m] = np.where(cover.outputs < 0, -1, places[cover.outputs])
        self.tiles, self.outputs_pad = outputs.shape
        self.inputs, self.outputs = torch.from_numpy(inputs).to(device), torch.from_numpy(outputs).to(device)
        self.cell_weights = torch.from_numpy(cell_weights).to(device)
        self.bias = torch.from_numpy(bias).to(device, torch.float32)
        points, self.weight_scale = spectral_weights(weight)
        self._packed = {points.shape[1:]: torch.from_numpy(points).to(device, dtype)}

    def packed(self, config: GatherConfig) -> Tensor:
        """The spectral weights, zero beyond the channels up to whole blocks."""
        key = round_up(self.c_in, config.block_k), round_up(self.c_out, config.block_cols)
        if key not in self._packed:
            known = next(iter(self._packed.values()))[:, : self.c_in, : self.c_out]
            padded = known.new_zeros((len(known), *key))
            padded[:, : self.c_in, : self.c_out] = known
            self._packed[key] = padded  # a captured graph may read the others
        return self._packed[key]


class FourierProposalConv(ConvStack):
    """The stacked layers through spectra of tiles that cover the needed cells: `ConvStack` in float16 or float32.

    A NaN or infinity spreads over its tiles. Of a layer's block sizes, which are those of its products, `max_splits` is
    not used.

    Args:
        layers: numbers of the layers that will run; None for all.
    """

    name = "fft"
    dtypes = (torch.float16, torch.float32)
    max_kernel = SPECTRAL_TILE

    def __init__(
        self,
        weights: Sequence[FloatArray],
        biases: Sequence[FloatArray],
        plan: ProposalPlan,
        dtype: torch.dtype,
        device: torch.device,
        config: GatherConfig | ConfigFor | None = None,
        layers: Collection[int] | None = None,
    ) -> None:
        super().__init__(weights, biases, plan, dtype, device, config)
        self._layers = {
            number: _Layer(number, weights[number], biases[number], plan, dtype, device)
            for number in (range(len(weights)) if layers is None else layers)
        }
        self._forward, self._inverse = (
            torch.from_numpy(matrix).to(device, dtype) for matrix in transform_matrices(plan.kernel)
        )
        self._prepared: dict[int, tuple[GatherConfig, Tensor, Tensor]] = {}

    def prepare_layers(self, numbers: Sequence[int], videos: int) -> None:
        config = self.config_for(videos)
        for number in numbers:
            self._layers[number].packed(config)
        spectra_in, spectra_out = (
            torch.empty(values, dtype=self.dtype, device=self.device)
            for values in self._spectra_values(numbers, videos)
        )
        self._prepared[videos] = config, spectra_in, spectra_out

    def scratch_bytes(self, numbers: Sequence[int], videos: int) -> int:
        return sum(self._spectra_values(numbers, videos)) * self.dtype.itemsize

    def release(self) -> None:
        super().release()
        self._prepared.clear()

    def _spectra_values(self, numbers: Sequence[int], videos: int) -> tuple[int, int]:
        """Values of the spectra of a layer's input and output that hold those of any of some layers."""
        layers = [self._layers[number] for number in numbers]
        return (
            max((layer.tiles * layer.c_in for layer in layers), default=0) * videos * POINTS,
            max((layer.tiles * layer.c_out for layer in layers), default=0) * videos * POINTS,
        )

    def _values_indexed(self) -> int:
        planes = [layer.tiles * max(layer.c_in, layer.c_out) for layer in self._layers.values()]
        return max([super()._values_indexed(), *planes])

    def run_layer(self, number: int, x: Tensor, out: Tensor) -> None:
        self.transform(number, x)
        self.multiply(number, x.shape[1])
        self.transform_back(number, out)

    def spectra(self, number: int, videos: int) -> tuple[Tensor, Tensor]:
        """Where the spectra of a prepared layer's input and output lie, [256, tiles * B, C] each."""
        layer, (_, *both) = self._layers[number], self._prepared[videos]
        rows = layer.tiles * videos
        spectra_in, spectra_out = (
            flat[: POINTS * rows * channels].view(POINTS, rows, channels)
            for flat, channels in zip(both, (layer.c_in, layer.c_out), strict=True)
        )
        return spectra_in, spectra_out

    def transform(self, number: int, x: Tensor) -> None:
        """Queue the first kernel of a prepared layer: the spectra of a map's windows."""
        layer, videos = self._layers[number], x.shape[1]
        _, spectra_in, _ = self._prepared[videos]
        tile_rows = layer.tiles * videos
        forward_kernel[(tile_rows, POINTS // BLOCK_POINTS, triton.cdiv(layer.c_in, BLOCK_CHANNELS))](
            *(x, self._forward, layer.inputs, spectra_in, tile_rows, videos),
            CHANNELS=layer.c_in,
            **TRANSFORM_BLOCKS,
            **TRANSFORM_OPTIONS,
        )

    def multiply(self, number: int, videos: int) -> None:
        """Queue the second one: the products of those spectra."""
        layer = self._layers[number]
        config, spectra_in, spectra_out = self._prepared[videos]
        tile_rows = layer.tiles * videos
        weights = layer.packed(config)
        _, c_pad, n_pad = weights.shape
        product_kernel[(triton.cdiv(tile_rows, config.block_rows), n_pad // config.block_cols, POINTS)](
            *(spectra_in, weights, spectra_out, tile_rows, layer.weight_scale),
            **{"C_IN": layer.c_in, "C_OUT": layer.c_out, "C_PAD": c_pad, "N_PAD": n_pad},
            **{"BLOCK_M": config.block_rows, "BLOCK_N": config.block_cols, "BLOCK_K": config.block_k},
            **{"num_warps": config.warps, "num_stages": config.stages},
        )

    def transform_back(self, number: int, out: Tensor) -> None:
        """Queue the third one: those products back to the cells of a map, or the rows of the plan's cells."""
        layer, videos = self._layers[number], out.shape[1]
        _, _, spectra_out = self._prepared[videos]
        tile_rows = layer.tiles * videos
        inverse_kernel[(tile_rows, layer.outputs_pad // BLOCK_POINTS, triton.cdiv(layer.c_out, BLOCK_CHANNELS))](
            *(spectra_out, self._inverse, layer.bias, layer.outputs, layer.cell_weights, out, tile_rows, videos),
            OUTPUTS_PAD=layer.outputs_pad,
            CHANNELS=layer.c_out,
            **TRANSFORM_BLOCKS,
            **TRANSFORM_OPTIONS,
        )
