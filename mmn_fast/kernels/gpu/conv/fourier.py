"""proposal_conv through discrete Fourier transforms of tiles of 12, 16 or 24 places a side.

Each layer runs three kernels: windows to spectra (`fourier_ops`), one matrix product per spectral point (in Triton, on
tensor cores), and spectra to needed cells (`fourier_ops`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mmn_fast.arrays import Float32
from mmn_fast.geometry import ProposalPlan, cover_with_tiles, input_cells
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.gather_schedule import side_of_input
from mmn_fast.kernels.gpu.conv.stack import CHANNELS, ConfigFor, ConvStack, round_up, whole_widths
from mmn_fast.kernels.gpu.fourier_ops import fourier_cells, fourier_tiles
from mmn_fast.kernels.transforms import SPECTRAL_TILE, TileTransform, fourier

_CHANNELS: tl.constexpr = tl.constexpr(CHANNELS)


@triton.jit(do_not_specialize=["tile_rows"])
def product_kernel(
    spectra_ptr,  # [2 * points, tiles * B, C_IN]: Re and Im of every complex point, then the real points, two by two
    weights_ptr,  # [2 * points, C_PAD, N_PAD], in the same order
    out_ptr,  # [2 * points, tiles * B, C_OUT]
    tile_rows,
    weight_scale,
    COMPLEX: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    C_PAD: tl.constexpr,
    N_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Compute both values of a complex point's product, or the products of two real points.

    A complex point takes four products of four loaded blocks. Computing each value alone would load twice as much, and
    loads bound the speed.
    """
    tl.static_assert(C_IN // _CHANNELS * _CHANNELS == C_IN, "expected a width of whole CHANNELS")
    if OVERLAP:
        # The next kernel's blocks may start early; this kernel's blocks wait here for the transform's spectra.
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    point = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    held = tl.minimum(row, tile_rows - 1).to(tl.int64)  # rows beyond the last one repeat it and are not stored
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    rows = tile_rows.to(tl.int64)
    x0_ptr = spectra_ptr + 2 * point * rows * C_IN + (held * C_IN)[:, None] + offs_k[None, :]
    w0_ptr = weights_ptr + 2 * point.to(tl.int64) * (C_PAD * N_PAD) + offs_k[:, None] * N_PAD + col[None, :]
    x1_ptr = x0_ptr + rows * C_IN
    w1_ptr = w0_ptr + C_PAD * N_PAD
    sum0 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sum1 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if point < COMPLEX:
        for k in range(0, C_PAD, BLOCK_K):
            x0 = _load_channels(x0_ptr, k, offs_k, C_IN, BLOCK_K)
            x1 = _load_channels(x1_ptr, k, offs_k, C_IN, BLOCK_K)
            w0 = tl.load(w0_ptr + k * N_PAD)
            w1 = tl.load(w1_ptr + k * N_PAD)
            # In this order the last two products still run when the next step begins.
            sum0 = tl.dot(-x1, w1, sum0, input_precision="ieee")
            sum1 = tl.dot(x1, w0, sum1, input_precision="ieee")
            sum0 = tl.dot(x0, w0, sum0, input_precision="ieee")
            sum1 = tl.dot(x0, w1, sum1, input_precision="ieee")
    else:
        for k in range(0, C_PAD, BLOCK_K):
            x0 = _load_channels(x0_ptr, k, offs_k, C_IN, BLOCK_K)
            x1 = _load_channels(x1_ptr, k, offs_k, C_IN, BLOCK_K)
            sum0 = tl.dot(x0, tl.load(w0_ptr + k * N_PAD), sum0, input_precision="ieee")
            sum1 = tl.dot(x1, tl.load(w1_ptr + k * N_PAD), sum1, input_precision="ieee")
    keep = (row < tile_rows)[:, None] & (col < C_OUT)[None, :]
    out = out_ptr + ((2 * point * rows + held) * C_OUT)[:, None] + col[None, :]
    tl.store(out, (sum0 * weight_scale).to(out_ptr.dtype.element_ty), mask=keep)
    tl.store(out + rows * C_OUT, (sum1 * weight_scale).to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _load_channels(pointers, k, offs_k, C_IN: tl.constexpr, BLOCK_K: tl.constexpr):
    if C_IN % BLOCK_K == 0:
        return tl.load(pointers + k)
    else:
        return tl.load(pointers + k, mask=(k + offs_k < C_IN)[None, :], other=0.0)


def spectral_weights(weight: Tensor, transform: TileTransform) -> tuple[Tensor, float]:
    """Transform weights to spectral points, divided by a power of two so that the largest value is at most 1.

    Args:
        weight: float32 [C_out, C_in, k, k].
        transform: a transform for kernels of k x k.

    Returns:
        float32 [n * n, C_in, C_out] on the weight's device, in the order of `transforms`; and the power of two.
    """
    matrix = torch.from_numpy(transform.weight_points).to(weight.device)
    points = torch.tensordot(matrix, weight.flatten(2).permute(2, 1, 0).double(), 1).float()
    largest = float(points.abs().max()) if points.numel() else 0.0
    scale = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 1.0
    points /= scale
    return points, scale


class _Layer:
    """One layer on the device: its spectral weights, its bias, and the rows that its tiles read and write."""

    def __init__(
        self,
        number: int,
        weight: Float32,
        bias: Float32,
        plan: ProposalPlan,
        transform: TileTransform,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.c_out, self.c_in = weight.shape[:2]
        layer, cover = plan.layers[number], cover_with_tiles(plan, number, transform.m)
        at = input_cells(plan, number) @ [side_of_input(plan, number), 1]
        inputs = np.where(cover.inputs < 0, -1, at[cover.inputs]).astype(np.int32)
        last = number + 1 == len(plan.layers)
        places = np.arange(len(layer.cells)) if last else layer.cells @ [layer.side, 1]
        cell_weights = layer.cell_weights if last else layer.weights.reshape(-1)
        outputs = np.where(cover.outputs < 0, -1, places[cover.outputs]).astype(np.int32)
        self.tiles = len(outputs)
        self.inputs, self.outputs = torch.from_numpy(inputs).to(device), torch.from_numpy(outputs).to(device)
        self.cell_weights = torch.from_numpy(cell_weights).to(device)
        self.bias = torch.from_numpy(bias).to(device, torch.float32)
        points, self.weight_scale = spectral_weights(torch.from_numpy(weight).to(device), transform)
        self._packed = {tuple(points.shape[1:]): points.to(dtype)}

    def packed(self, config: GatherConfig) -> Tensor:
        """The spectral weights, filled up with zero channels to whole blocks."""
        key = round_up(self.c_in, config.block_k), round_up(self.c_out, config.block_cols)
        if key not in self._packed:
            known = next(iter(self._packed.values()))[:, : self.c_in, : self.c_out]
            padded = known.new_zeros((len(known), *key))
            padded[:, : self.c_in, : self.c_out] = known
            self._packed[key] = padded  # earlier packings stay, because a captured graph may read them
        return self._packed[key]


class FourierProposalConv(ConvStack):
    """A `ConvStack` that multiplies spectra of tiles that cover the needed cells, in float16 or float32.

    A NaN or infinity spreads over its tiles. Block sizes apply to the products; `max_splits` is ignored.

    Args:
        layers: numbers of the layers that will run; None for all.
        tile: side of a tile in places, one of `transforms.SPECTRAL_TILES`, at least k.
    """

    dtypes = (torch.float16, torch.float32)

    def __init__(
        self,
        settings: ConvSettings,
        config: GatherConfig | ConfigFor | None = None,
        layers: Collection[int] | None = None,
        tile: int = SPECTRAL_TILE,
    ) -> None:
        self.name, self.max_kernel = f"fft{tile}", tile
        super().__init__(settings, config)
        self.transform_of_tiles = fourier(self.plan.kernel, tile)
        self._layers = {
            number: _Layer(
                *(number, *whole_widths(settings.weights[number], settings.biases[number]), self.plan),
                *(self.transform_of_tiles, self.dtype, self.device),
            )
            for number in (range(len(settings.weights)) if layers is None else layers)
        }
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
        """Values in the input and output spectra that are large enough for each of some layers."""
        layers, points = [self._layers[number] for number in numbers], self.transform_of_tiles.points_per_tile
        return (
            max((layer.tiles * layer.c_in for layer in layers), default=0) * videos * points,
            max((layer.tiles * layer.c_out for layer in layers), default=0) * videos * points,
        )

    def _values_indexed(self) -> int:
        planes = [layer.tiles * max(layer.c_in, layer.c_out) for layer in self._layers.values()]
        return max([super()._values_indexed(), *planes])

    def run_layer(self, number: int, x: Tensor, out: Tensor) -> None:
        self.transform(number, x)
        self.multiply(number, x.shape[1])
        self.transform_back(number, out)

    def spectra(self, number: int, videos: int) -> tuple[Tensor, Tensor]:
        """The buffers of a prepared layer's input and output spectra, [n * n, tiles, B, C] each."""
        layer, (_, *both) = self._layers[number], self._prepared[videos]
        points = self.transform_of_tiles.points_per_tile
        shapes = [(points, layer.tiles, videos, channels) for channels in (layer.c_in, layer.c_out)]
        spectra_in, spectra_out = (
            flat[: math.prod(shape)].view(shape) for flat, shape in zip(both, shapes, strict=True)
        )
        return spectra_in, spectra_out

    def transform(self, number: int, x: Tensor) -> None:
        """Queue the first kernel of a prepared layer: a map's windows to spectra."""
        fourier_tiles(x, self._layers[number].inputs, self.spectra(number, x.shape[1])[0])

    def multiply(self, number: int, videos: int) -> None:
        """Queue the second kernel: the products of the spectra."""
        layer, transform = self._layers[number], self.transform_of_tiles
        config, spectra_in, spectra_out = self._prepared[videos]
        tile_rows = layer.tiles * videos
        weights = layer.packed(config)
        points, c_pad, n_pad = weights.shape
        overlap = self.capability >= (9, 0)
        options: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
        if overlap:
            options["launch_pdl"] = True
        product_kernel[(triton.cdiv(tile_rows, config.block_rows), n_pad // config.block_cols, points // 2)](
            *(spectra_in, weights, spectra_out, tile_rows, layer.weight_scale),
            COMPLEX=transform.pairs,
            C_IN=layer.c_in,
            C_OUT=layer.c_out,
            C_PAD=c_pad,
            N_PAD=n_pad,
            BLOCK_M=config.block_rows,
            BLOCK_N=config.block_cols,
            BLOCK_K=config.block_k,
            OVERLAP=overlap,
            **options,
        )

    def transform_back(self, number: int, out: Tensor) -> None:
        """Queue the third kernel: the products back to the cells of a map, or to the rows of the plan's cells."""
        layer = self._layers[number]
        products = self.spectra(number, out.shape[1])[1]
        fourier_cells(products, layer.outputs, layer.bias, layer.cell_weights, out)
