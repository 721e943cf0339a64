"""proposal_conv as a gathering matrix product on tensor cores, in Triton.

Each tile of rows (cells x videos, `gather_schedule`) multiplies only the taps that some row of the tile needs.
Activations are dense, channels-last, with videos minor to cells, and hold a zero wherever a cell is known to be zero.
So a row's neighbour under a tap is the row plus one offset for the whole tile, and the loop reads no table: a load that
feeds an address would halve the depth of the copy pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig, choose_splits
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.gather_schedule import ITEM_WORDS, MAX_TAPS, WORD_BITS, LayerSchedule, schedule_layer
from mmn_fast.kernels.gpu.conv.stack import CHANNELS, ConfigFor, ConvStack, round_up, whole_widths

_WORD_BITS: tl.constexpr = tl.constexpr(WORD_BITS)
_ITEM_WORDS: tl.constexpr = tl.constexpr(ITEM_WORDS)
_CHANNELS: tl.constexpr = tl.constexpr(CHANNELS)


@triton.jit
def _meet_other_layers(OVERLAP: tl.constexpr):
    """Overlap layers: the next layer's blocks may start early; this layer's blocks wait here for the previous layer."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _load_words(item, WORDS: tl.constexpr):
    """The words of an item's taps, one bit per tap; words beyond WORDS are 0."""
    word0 = tl.load(item + _ITEM_WORDS)
    word1 = 0
    word2 = 0
    if WORDS > 1:
        word1 = tl.load(item + _ITEM_WORDS + 1)
    if WORDS > 2:
        word2 = tl.load(item + _ITEM_WORDS + 2)
    return word0, word1, word2


@triton.jit
def _sum_of_taps(
    x_rows,  # the rows' own places in x, [BLOCK_M]
    weights,
    n0,
    side_in,
    videos,
    n_taps,
    words,
    offs_k,
    C_IN: tl.constexpr,
    C_PAD: tl.constexpr,
    N_PAD: tl.constexpr,
    KERNEL: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Sum the rows' products with the weights of the taps in the words: float32 [BLOCK_M, BLOCK_N]."""
    word0, word1, word2 = words
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    k0 = 0
    for _step in range(n_taps * (C_PAD // BLOCK_K)):
        word = word0
        first_bit = 0
        if WORDS > 1:
            in_second = word0 == 0
            word = tl.where(in_second, word1, word)
            first_bit = tl.where(in_second, _WORD_BITS, 0)
        if WORDS > 2:
            in_third = (word0 | word1) == 0
            word = tl.where(in_third, word2, word)
            first_bit = tl.where(in_third, 2 * _WORD_BITS, first_bit)
        # The lowest set bit as a float32 is a power of two, whose exponent is the bit's number.
        tap = first_bit + ((word & -word).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        shift = ((tap // KERNEL) * side_in + tap % KERNEL) * videos * C_IN + k0
        if C_IN % BLOCK_K == 0:
            x = tl.load(x_rows[:, None] + (shift + offs_k)[None, :])
        else:
            x = tl.load(x_rows[:, None] + (shift + offs_k)[None, :], mask=(k0 + offs_k < C_IN)[None, :], other=0.0)
        if DESCRIPTOR:
            w = weights.load([tap * C_PAD + k0, n0])
        else:
            w_rows = weights + (tap * C_PAD + k0 + offs_k) * N_PAD
            w = tl.load(w_rows[:, None] + (n0 + tl.arange(0, BLOCK_N))[None, :])
        acc = tl.dot(x, w, acc, input_precision="ieee")
        k0 += BLOCK_K
        tap_done = k0 == C_PAD
        k0 = tl.where(tap_done, 0, k0)
        if WORDS > 2:
            word2 = tl.where(tap_done & in_third, word2 & (word2 - 1), word2)
        if WORDS > 1:
            word1 = tl.where(tap_done & in_second, word1 & (word1 - 1), word1)
        word0 = tl.where(tap_done, word0 & (word0 - 1), word0)
    return acc


# Sizes that change from layer to layer are not compiled in; C_IN alone tells the compiler how rows are aligned.
@triton.jit(do_not_specialize=["rows", "videos", "side_in", "n_items"])
def gather_conv_kernel(
    x_ptr,  # [side_in^2, B, C_IN]
    weights,  # [k*k * C_PAD, N_PAD]: a tensor descriptor of blocks [BLOCK_K, BLOCK_N], or a pointer
    bias_ptr,  # float32 [C_OUT]
    cells_in_ptr,  # int32 [R]
    cells_out_ptr,  # int32 [R]
    cell_weights_ptr,  # float32 [R]
    items_ptr,  # int32 [n_items, 3 + WORDS]
    out_ptr,  # SPLITS == 1: [cells, B, C_OUT]; else float32 partial sums [SPLITS, rows, C_OUT]
    rows,
    videos,
    side_in,
    n_items,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    C_PAD: tl.constexpr,
    N_PAD: tl.constexpr,
    KERNEL: tl.constexpr,
    WORDS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Run one layer: sum every needed cell over its taps, then apply bias, ReLU and cell weight, or store the share."""
    tl.static_assert(C_IN // _CHANNELS * _CHANNELS == C_IN, "expected a width of whole CHANNELS")
    _meet_other_layers(OVERLAP)
    N_BLOCKS: tl.constexpr = N_PAD // BLOCK_N
    offs_k = tl.arange(0, BLOCK_K)
    for work in range(tl.program_id(0), n_items * N_BLOCKS, tl.num_programs(0)):
        item = items_ptr + (work // N_BLOCKS) * (_ITEM_WORDS + WORDS)
        n0 = (work % N_BLOCKS) * BLOCK_N
        split = tl.load(item + 1)
        n_taps = tl.load(item + 2)
        words = _load_words(item, WORDS)
        row = tl.load(item) + tl.arange(0, BLOCK_M)
        # Rows beyond the last one repeat it, so their reads stay inside the map; they are not stored.
        held = tl.minimum(row, rows - 1)
        cell = held // videos
        video = held - cell * videos
        source = tl.load(cells_in_ptr + cell) * videos + video
        x_rows = x_ptr + source.to(tl.int64) * C_IN
        acc = _sum_of_taps(
            x_rows, weights, n0, side_in, videos, n_taps, words, offs_k,
            C_IN, C_PAD, N_PAD, KERNEL, WORDS, BLOCK_M, BLOCK_N, BLOCK_K, DESCRIPTOR,
        )  # fmt: skip
        offs_n = n0 + tl.arange(0, BLOCK_N)
        keep = (row < rows)[:, None] & (offs_n < C_OUT)[None, :]
        if SPLITS == 1:
            bias = tl.load(bias_ptr + offs_n, mask=offs_n < C_OUT, other=0.0)
            scale = tl.load(cell_weights_ptr + cell)
            # Not maximum(): it may drop a NaN, but a ReLU keeps it.
            sums = acc + bias[None, :]
            sums = tl.where(sums < 0, 0.0, sums) * scale[:, None]
            place = (tl.load(cells_out_ptr + cell) * videos + video).to(tl.int64) * C_OUT
            tl.store(out_ptr + place[:, None] + offs_n[None, :], sums.to(out_ptr.dtype.element_ty), mask=keep)
        else:
            place = (split * rows + held).to(tl.int64) * C_OUT
            tl.store(out_ptr + place[:, None] + offs_n[None, :], acc, mask=keep)


@triton.jit(do_not_specialize=["rows", "videos"])
def add_splits_kernel(
    partial_ptr,  # float32 [SPLITS, rows, C_OUT]
    bias_ptr,
    cells_out_ptr,
    cell_weights_ptr,
    out_ptr,  # [cells, B, C_OUT]
    rows,
    videos,
    C_OUT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Add the shares of every sum, always in the same order, then apply bias, ReLU and cell weight."""
    _meet_other_layers(OVERLAP)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    keep = (row < rows)[:, None] & (offs_n < C_OUT)[None, :]
    held = tl.minimum(row, rows - 1)
    cell = held // videos
    video = held - cell * videos
    bias = tl.load(bias_ptr + offs_n, mask=offs_n < C_OUT, other=0.0)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32) + bias[None, :]
    for split in tl.static_range(SPLITS):
        place = (split * rows + held).to(tl.int64) * C_OUT
        sums += tl.load(partial_ptr + place[:, None] + offs_n[None, :], mask=keep, other=0.0)
    scale = tl.load(cell_weights_ptr + cell)
    sums = tl.where(sums < 0, 0.0, sums) * scale[:, None]
    place = (tl.load(cells_out_ptr + cell) * videos + video).to(tl.int64) * C_OUT
    tl.store(out_ptr + place[:, None] + offs_n[None, :], sums.to(out_ptr.dtype.element_ty), mask=keep)


class _Ready:
    """One layer for one number of videos: its schedule on the device, and its output."""

    def __init__(self, schedule: LayerSchedule, device: torch.device) -> None:
        def take(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        self.schedule = schedule
        self.cells_in, self.cells_out = take(schedule.cells_in), take(schedule.cells_out)
        self.cell_weights, self.items = take(schedule.cell_weights), take(schedule.items)


class _Prepared:
    """The layers for one number of videos, and the partial sums of split layers."""

    def __init__(self, config: GatherConfig, layers: dict[int, _Ready], partial: Tensor | None) -> None:
        self.config, self.layers, self.partial = config, layers, partial


class GatherProposalConv(ConvStack):
    """A `ConvStack` that multiplies needed cells and taps alone, in float16, bfloat16 or float32."""

    name = "gather"
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    max_kernel = math.isqrt(MAX_TAPS)

    def __init__(self, settings: ConvSettings, config: GatherConfig | ConfigFor | None = None) -> None:
        super().__init__(settings, config)
        whole = [whole_widths(*layer) for layer in zip(settings.weights, settings.biases, strict=True)]
        self._weights = [torch.from_numpy(weight) for weight, _ in whole]
        self._biases = [torch.from_numpy(bias).to(self.device, torch.float32) for _, bias in whole]
        self._packed: dict[tuple[int, int, int], Tensor] = {}
        self._prepared: dict[int, _Prepared] = {}

    def prepare_layers(self, numbers: Sequence[int], videos: int) -> None:
        config, layers = self.config_for(videos), {}
        for number in numbers:
            splits = self._splits(number, config, videos)
            schedule = schedule_layer(self.plan, number, videos, config.block_rows, splits)
            layers[number] = _Ready(schedule, self.device)
            self._pack(number, config)
        values = self.scratch_bytes(numbers, videos) // torch.float32.itemsize
        partial = torch.empty(values, dtype=torch.float32, device=self.device) if values else None
        self._prepared[videos] = _Prepared(config, layers, partial)

    def scratch_bytes(self, numbers: Sequence[int], videos: int) -> int:
        config, most = self.known_config(videos), 0
        for number in numbers:
            splits = self._splits(number, config, videos)
            rows = len(self.plan.layers[number].cells) * videos
            most = max(most, splits * rows * self.widths[number + 1] if splits > 1 else 0)
        return most * torch.float32.itemsize

    def release(self) -> None:
        super().release()
        self._prepared.clear()

    def _splits(self, number: int, config: GatherConfig, videos: int) -> int:
        rows = len(self.plan.layers[number].cells) * videos
        work = -(-rows // config.block_rows) * -(-self.widths[number + 1] // config.block_cols)
        return choose_splits(work, self.programs, config.max_splits)

    def _pack(self, number: int, config: GatherConfig) -> Tensor:
        """A layer's weights as [k*k * C_pad, N_pad], tap-major, filled up with zero channels."""
        weight = self._weights[number]
        c_out, c_in = weight.shape[:2]
        key = (number, round_up(c_in, config.block_k), round_up(c_out, config.block_cols))
        if key not in self._packed:
            packed = torch.zeros((self.plan.kernel**2, *key[1:]), dtype=self.dtype, device=self.device)
            packed[:, :c_in, :c_out] = weight.flatten(2).permute(2, 1, 0).to(self.device, self.dtype)
            self._packed[key] = packed.view(-1, key[2])
        return self._packed[key]

    def run_layer(self, number: int, x: Tensor, out: Tensor) -> None:
        videos = x.shape[1]
        held = self._prepared[videos]
        config, ready = held.config, held.layers[number]
        schedule = ready.schedule
        c_out, c_in = self._weights[number].shape[:2]
        packed = self._pack(number, config)
        c_pad, n_pad = len(packed) // self.plan.kernel**2, packed.shape[1]
        split = schedule.splits > 1
        descriptor = self.capability >= (9, 0) or not self.on_gpu
        overlap = self.capability >= (9, 0)
        options: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
        if overlap:
            options["launch_pdl"] = True
        work = len(schedule.items) * (n_pad // config.block_cols)
        gather_conv_kernel[(min(self.programs, work),)](
            x,
            weight_descriptor(packed, config) if descriptor else packed,
            self._biases[number],
            ready.cells_in,
            ready.cells_out,
            ready.cell_weights,
            ready.items,
            held.partial if split else out,
            schedule.rows,
            videos,
            schedule.side_in,
            len(schedule.items),
            C_IN=c_in,
            C_OUT=c_out,
            C_PAD=c_pad,
            N_PAD=n_pad,
            KERNEL=self.plan.kernel,
            WORDS=schedule.words,
            SPLITS=schedule.splits,
            BLOCK_M=config.block_rows,
            BLOCK_N=config.block_cols,
            BLOCK_K=config.block_k,
            DESCRIPTOR=descriptor,
            OVERLAP=overlap,
            **options,
        )
        if split:
            self._add_splits(held, number, videos, out, overlap)

    def _add_splits(self, held: _Prepared, number: int, videos: int, out: Tensor, overlap: bool) -> None:
        """Add the partial sums of a layer."""
        ready, c_out = held.layers[number], self._weights[number].shape[0]
        schedule = ready.schedule
        rows_at_once, cols_at_once = 16, min(256, triton.next_power_of_2(c_out))
        grid = (triton.cdiv(schedule.rows, rows_at_once), triton.cdiv(c_out, cols_at_once))
        add_splits_kernel[grid](
            held.partial,
            self._biases[number],
            ready.cells_out,
            ready.cell_weights,
            out,
            schedule.rows,
            videos,
            C_OUT=c_out,
            SPLITS=schedule.splits,
            BLOCK_M=rows_at_once,
            BLOCK_N=cols_at_once,
            OVERLAP=overlap,
            **({"launch_pdl": True} if overlap else {}),
        )


def weight_descriptor(packed: Tensor, config: GatherConfig) -> Any:
    """Describe the packed weights to the copy engine, in blocks of the configuration."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(packed, [config.block_k, config.block_cols])
