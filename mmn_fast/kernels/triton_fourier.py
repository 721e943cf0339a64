"""proposal_conv through discrete Fourier transforms of 16 x 16 tiles.

Per layer three kernels: windows to spectra (`gpu_fourier_ops`), one matrix product per spectral point, in Triton on
tensor cores, and spectra to needed cells.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mmn_fast.geometry import FloatArray, ProposalPlan, cover_with_tiles, input_cells
from mmn_fast.kernels.conv_transforms import REAL_POINTS, SPECTRAL_POINTS, SPECTRAL_TILE, fourier
from mmn_fast.kernels.gather_choices import GatherConfig
from mmn_fast.kernels.gather_schedule import side_of_input
from mmn_fast.kernels.gpu_fourier_ops import fourier_cells, fourier_tiles
from mmn_fast.kernels.triton_stack import ConfigFor, ConvStack, round_up

PAIRS = (SPECTRAL_POINTS - REAL_POINTS) // 2
_PAIRED: tl.constexpr = tl.constexpr(2 * PAIRS)
_PAIRS: tl.constexpr = tl.constexpr(PAIRS)


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


def spectral_weights(weight: Tensor) -> tuple[Tensor, float]:
    """Weights at every spectral point, and the power of two that was divided out to bring the largest to 1 or less.

    Args:
        weight: float32 [C_out, C_in, k, k].

    Returns:
        float32 [3 * 126 + 4, C_in, C_out] on its device: Im, Re and -Im of every pair, then the real points; and the
        power of two.
    """
    matrix = torch.from_numpy(fourier(weight.shape[2]).weight_points).to(weight.device)
    points = torch.tensordot(matrix, weight.flatten(2).permute(2, 1, 0).double(), 1).float()
    largest = float(points.abs().max()) if points.numel() else 0.0
    scale = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 1.0
    points /= scale
    re, im = points[: 2 * PAIRS : 2], points[1 : 2 * PAIRS : 2]
    paired = torch.stack([im, re, -im], 1).flatten(0, 1)
    return torch.cat([paired, points[2 * PAIRS :]]), scale


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
        layer, cover = plan.layers[number], cover_with_tiles(plan, number, fourier(plan.kernel).m)
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
        points, self.weight_scale = spectral_weights(torch.from_numpy(weight).to(device))
        self._packed = {tuple(points.shape[1:]): points.to(dtype)}

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
            max((layer.tiles * layer.c_in for layer in layers), default=0) * videos * SPECTRAL_POINTS,
            max((layer.tiles * layer.c_out for layer in layers), default=0) * videos * SPECTRAL_POINTS,
        )

    def _values_indexed(self) -> int:
        planes = [layer.tiles * max(layer.c_in, layer.c_out) for layer in self._layers.values()]
        return max([super()._values_indexed(), *planes])

    def run_layer(self, number: int, x: Tensor, out: Tensor) -> None:
        self.transform(number, x)
        self.multiply(number, x.shape[1])
        self.transform_back(number, out)

    def spectra(self, number: int, videos: int) -> tuple[Tensor, Tensor]:
        """Where the spectra of a prepared layer's input and output lie, [256, tiles, B, C] each."""
        layer, (_, *both) = self._layers[number], self._prepared[videos]
        shapes = [(SPECTRAL_POINTS, layer.tiles, videos, channels) for channels in (layer.c_in, layer.c_out)]
        spectra_in, spectra_out = (
            flat[: math.prod(shape)].view(shape) for flat, shape in zip(both, shapes, strict=True)
        )
        return spectra_in, spectra_out

    def transform(self, number: int, x: Tensor) -> None:
        """Queue the first kernel of a prepared layer: the spectra of a map's windows."""
        fourier_tiles(x, self._layers[number].inputs, self.spectra(number, x.shape[1])[0])

    def multiply(self, number: int, videos: int) -> None:
        """Queue the second one: the products of those spectra."""
        layer = self._layers[number]
        config, spectra_in, spectra_out = self._prepared[videos]
        tile_rows = layer.tiles * videos
        weights = layer.packed(config)
        _, c_pad, n_pad = weights.shape
        product_kernel[(triton.cdiv(tile_rows, config.block_rows), n_pad // config.block_cols, SPECTRAL_POINTS)](
            *(spectra_in, weights, spectra_out, tile_rows, layer.weight_scale),
            **{"C_IN": layer.c_in, "C_OUT": layer.c_out, "C_PAD": c_pad, "N_PAD": n_pad},
            **{"BLOCK_M": config.block_rows, "BLOCK_N": config.block_cols, "BLOCK_K": config.block_k},
            **{"num_warps": config.warps, "num_stages": config.stages},
        )

    def transform_back(self, number: int, out: Tensor) -> None:
        """Queue the third one: those products back to the cells of a map, or the rows of the plan's cells."""
        layer = self._layers[number]
        products = self.spectra(number, out.shape[1])[1]
        fourier_cells(products, layer.outputs, layer.bias, layer.cell_weights, out)
