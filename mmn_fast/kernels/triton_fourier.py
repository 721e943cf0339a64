"""proposal_conv through discrete Fourier transforms of 16 x 16 tiles.

Per layer three kernels: windows to spectra (`gpu_fourier_ops`), one matrix product per spectral point, in Triton on
tensor cores, and spectra to needed cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mmn_fast.geometry import FloatArray, ProposalPlan, cover_with_tiles
from mmn_fast.kernels.conv_transforms import fourier
from mmn_fast.kernels.gather_choices import GatherConfig
from mmn_fast.kernels.gather_schedule import side_of_input
from mmn_fast.kernels.gpu_fourier_ops import POINTS, fourier_cells, fourier_tiles
from mmn_fast.kernels.triton_conv import MapLayout, check_layers, round_up

DTYPES = (torch.float16, torch.float32)
REAL_POINTS = 4
PAIRS = (POINTS - REAL_POINTS) // 2
_PAIRED: tl.constexpr = tl.constexpr(2 * PAIRS)
_PAIRS: tl.constexpr = tl.constexpr(PAIRS)
_INDEX_LIMIT = 2**31
PRODUCT_CONFIG = GatherConfig(128, 128, 64, 8, 4, 1)


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
        at: Tensor,
        config: GatherConfig,
    ) -> None:
        device = at.device
        self.c_out, self.c_in = weight.shape[:2]
        cover = cover_with_tiles(plan, number, fourier(plan.kernel).m)
        inputs = torch.from_numpy(cover.inputs)
        if number == 0:
            inputs = torch.where(inputs < 0, inputs, at.cpu()[inputs.long()].int())
        self.tiles, self.cells = len(cover.outputs), len(plan.layers[number].cells)
        self.inputs, self.outputs = inputs.to(device), torch.from_numpy(cover.outputs).to(device)
        self.cell_weights = torch.from_numpy(plan.layers[number].cell_weights).to(device)
        self.bias = torch.from_numpy(bias).to(device, torch.float32)
        points, self.weight_scale = spectral_weights(weight)
        c_pad, n_pad = round_up(self.c_in, config.block_k), round_up(self.c_out, config.block_cols)
        self.weights = torch.zeros((len(points), c_pad, n_pad), dtype=dtype, device=device)
        self.weights[:, : self.c_in, : self.c_out] = torch.from_numpy(points).to(device, dtype)


class FourierProposalConv:
    """The stacked layers through spectra of tiles that cover the needed cells.

    Calls of one object share their workspace, so they must be ordered, as calls on one stream are. A video's rows do
    not depend on the other videos' values; a NaN or infinity spreads over its tiles.

    Args:
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded in; k at most 16.
        biases: per layer float32 [C_out].
        plan: what to compute.
        dtype: of operands, spectra and maps: float16, or float32 (multiplied in float32, without tensor cores).
        device: a CUDA device; the CPU only in Triton's interpreter (TRITON_INTERPRET=1).
        config: block sizes of the products; its `max_splits` is not used.

    Raises:
        ValueError: an argument cannot be used; the message says what was expected.
    """

    name = "fft"

    def __init__(
        self,
        weights: Sequence[FloatArray],
        biases: Sequence[FloatArray],
        plan: ProposalPlan,
        dtype: torch.dtype,
        device: torch.device,
        config: GatherConfig = PRODUCT_CONFIG,
    ) -> None:
        check_layers(weights, biases, plan)
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {dtype}")
        if device.type != "cuda" and not (device.type == "cpu" and triton.knobs.runtime.interpret):
            raise ValueError(f"device: expected a CUDA device, or cpu with TRITON_INTERPRET=1, got {device}")
        self.plan, self.dtype, self.device = plan, dtype, device
        self._config = config
        side = side_of_input(plan, 0)
        self.layout = MapLayout(side, (side - plan.num_clips) // 2, weights[0].shape[1])
        at = torch.from_numpy((plan.inputs + self.layout.border) @ np.array([side, 1])).to(device)
        self._layers = [
            _Layer(number, weight, bias, plan, dtype, at, config)
            for number, (weight, bias) in enumerate(zip(weights, biases, strict=True))
        ]
        self._prepared: dict[int, list[Tensor]] = {}

    def prepare(self, videos: int) -> None:
        """Allocate spectra and maps for a number of videos; a call does it by itself unless a graph is captured.

        Raises:
            ValueError: below 1, or so many that a map's rows or a plane of spectra have 2^31 values or more.
        """
        if videos in self._prepared:
            return
        layers = self._layers
        largest = max(
            self.layout.side**2 * layers[0].c_in,
            *(max(layer.tiles * layer.c_in, max(layer.tiles, layer.cells) * layer.c_out) for layer in layers),
        )
        if not 1 <= videos <= (_INDEX_LIMIT - 1) // largest:
            raise ValueError(f"videos: expected 1 to {(_INDEX_LIMIT - 1) // largest} at once, got {videos}")
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ValueError(f"videos: expected prepare({videos}) before a graph is captured, got none")

        def empty(*size: int) -> Tensor:
            return torch.empty(size, dtype=self.dtype, device=self.device)

        spectra_in = empty(max(layer.tiles * layer.c_in for layer in layers) * videos * POINTS)
        spectra_out = empty(max(layer.tiles * layer.c_out for layer in layers) * videos * POINTS)
        maps = [empty(layer.cells, videos, layer.c_out) for layer in layers[:-1]]
        self._prepared[videos] = [spectra_in, spectra_out, *maps]

    def workspace_mib(self, videos: int) -> float:
        """MiB that `prepare` holds for a number of videos: spectra and maps; spectral weights are shared."""
        self.prepare(videos)
        return sum(tensor.numel() * tensor.element_size() for tensor in self._prepared[videos]) / 2**20

    def __call__(self, map_padded: Tensor) -> Tensor:
        """`reference.proposal_conv_packed` on the padded map.

        Args:
            map_padded: dtype [side^2, B, C_0], contiguous, see `layout`.

        Returns:
            dtype [P, B, C]: the last layer at the plan's cells.

        Raises:
            ValueError: the map's shape, dtype, device or strides are not those.
        """
        self.layout.check(map_padded, self.dtype, self.device)
        videos = map_padded.shape[1]
        rows = map_padded.new_empty((self.plan.num_proposals, videos, self._layers[-1].c_out))
        if videos == 0:
            return rows
        self.prepare(videos)
        spectra_in, spectra_out, *maps = self._prepared[videos]
        x = map_padded
        for layer, out in zip(self._layers, [*maps, rows], strict=True):
            self._run_layer(layer, x, spectra_in, spectra_out, out, videos)
            x = out
        return rows

    def _run_layer(
        self, layer: _Layer, x: Tensor, spectra_in: Tensor, spectra_out: Tensor, out: Tensor, videos: int
    ) -> None:
        tile_rows = layer.tiles * videos
        spectra_in, spectra_out = (
            spectra[: POINTS * tile_rows * width].view(POINTS, layer.tiles, videos, width)
            for spectra, width in ((spectra_in, layer.c_in), (spectra_out, layer.c_out))
        )
        fourier_tiles(x, layer.inputs, spectra_in)
        _, c_pad, n_pad = layer.weights.shape
        config = self._config
        product_kernel[(triton.cdiv(tile_rows, config.block_rows), n_pad // config.block_cols, POINTS)](
            *(spectra_in, layer.weights, spectra_out, tile_rows, layer.weight_scale),
            **{"C_IN": layer.c_in, "C_OUT": layer.c_out, "C_PAD": c_pad, "N_PAD": n_pad},
            **{"BLOCK_M": config.block_rows, "BLOCK_N": config.block_cols, "BLOCK_K": config.block_k},
            **{"num_warps": config.warps, "num_stages": config.stages},
        )
        fourier_cells(spectra_out, layer.outputs, layer.bias, layer.cell_weights, out)
