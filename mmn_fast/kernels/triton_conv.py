"""proposal_conv as a gathering matrix product on tensor cores, in Triton.

Each tile of rows (cells x videos, `gather_schedule`) multiplies only the taps that some row of it needs. Activations
are dense, channels-last, with videos minor to cells, and hold zeros wherever a cell is known to be zero; so the
neighbour of a row under a tap is that row plus one offset for the whole tile, and no table is read inside the loop: a
load that feeds an address there would halve the depth of the copy pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmn_fast.geometry import FloatArray, ProposalPlan
from mmn_fast.kernels.gather_choices import GatherConfig, choose_splits, shipped_config
from mmn_fast.kernels.gather_schedule import (
    ITEM_WORDS,
    MAX_TAPS,
    WORD_BITS,
    LayerSchedule,
    schedule_layer,
    side_of_input,
)

_WORD_BITS: tl.constexpr = tl.constexpr(WORD_BITS)
_ITEM_WORDS: tl.constexpr = tl.constexpr(ITEM_WORDS)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_INDEX_LIMIT = 2**31


@triton.jit
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
    """One layer: every needed cell's sum over its taps, then bias, ReLU and cell weight, or a share of the sum."""
    if OVERLAP:
        # The next layer's blocks may start as this one's leave; they wait here for its results.
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    N_BLOCKS: tl.constexpr = N_PAD // BLOCK_N
    K_STEPS: tl.constexpr = C_PAD // BLOCK_K
    offs_k = tl.arange(0, BLOCK_K)
    for work in range(tl.program_id(0), n_items * N_BLOCKS, tl.num_programs(0)):
        item = items_ptr + (work // N_BLOCKS) * (_ITEM_WORDS + WORDS)
        n0 = (work % N_BLOCKS) * BLOCK_N
        split = tl.load(item + 1)
        n_taps = tl.load(item + 2)
        word0 = tl.load(item + _ITEM_WORDS)
        word1 = 0
        word2 = 0
        if WORDS > 1:
            word1 = tl.load(item + _ITEM_WORDS + 1)
        if WORDS > 2:
            word2 = tl.load(item + _ITEM_WORDS + 2)
        row = tl.load(item) + tl.arange(0, BLOCK_M)
        # Rows beyond the last repeat it: their reads stay inside the map, and they are not stored.
        held = tl.minimum(row, rows - 1)
        cell = held // videos
        video = held - cell * videos
        source = tl.load(cells_in_ptr + cell) * videos + video
        x_rows = x_ptr + source.to(tl.int64) * C_IN
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        k0 = 0
        for _step in range(n_taps * K_STEPS):
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
            # The exponent of a power of two is its bit's number.
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

        offs_n = n0 + tl.arange(0, BLOCK_N)
        keep = (row < rows)[:, None] & (offs_n < C_OUT)[None, :]
        if SPLITS == 1:
            bias = tl.load(bias_ptr + offs_n, mask=offs_n < C_OUT, other=0.0)
            scale = tl.load(cell_weights_ptr + cell)
            # Not maximum(): it may drop a NaN, which a ReLU keeps.
            sums = acc + bias[None, :]
            sums = tl.where(sums < 0, 0.0, sums) * scale[:, None]
            place = (tl.load(cells_out_ptr + cell) * videos + video).to(tl.int64) * C_OUT
            tl.store(out_ptr + place[:, None] + offs_n[None, :], sums.to(out_ptr.dtype.element_ty), mask=keep)
        else:
            place = (split * rows + held).to(tl.int64) * C_OUT
            tl.store(out_ptr + place[:, None] + offs_n[None, :], acc, mask=keep)


@triton.jit
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
    """Add the shares of every sum, always in the same order, then bias, ReLU and cell weight."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
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


@dataclass(frozen=True)
class MapLayout:
    """The map that a convolution here takes: [side^2, B, channels], contiguous, zero outside the plan's cells.

    Cell (i, j) stands at row (i + border) * side + j + border.
    """

    side: int
    border: int
    channels: int

    def check(self, map_padded: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Raise ValueError unless a map is laid out like this, in this dtype and on such a device."""
        expected = (self.side**2, self.channels)
        if map_padded.ndim != 3 or (map_padded.shape[0], map_padded.shape[2]) != expected:
            raise ValueError(f"map_padded: expected [{expected[0]}, B, {expected[1]}], got {list(map_padded.shape)}")
        if map_padded.dtype != dtype or map_padded.device.type != device.type:
            raise ValueError(f"map_padded: expected {dtype} on {device}, got {map_padded.dtype} on {map_padded.device}")
        if not map_padded.is_contiguous():
            raise ValueError(f"map_padded: expected contiguous, got strides {map_padded.stride()}")


class _Ready:
    """One layer for one number of videos: its schedule on the device and where its output goes."""

    def __init__(self, schedule: LayerSchedule, device: torch.device) -> None:
        def take(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        self.schedule = schedule
        self.cells_in, self.cells_out = take(schedule.cells_in), take(schedule.cells_out)
        self.cell_weights, self.items = take(schedule.cell_weights), take(schedule.items)


class _Prepared:
    """All layers for one number of videos, with the maps between them and the partial sums of split layers."""

    def __init__(self, config: GatherConfig, layers: list[_Ready], maps: list[Tensor], partial: Tensor | None) -> None:
        self.config, self.layers, self.maps, self.partial = config, layers, maps, partial


class GatherProposalConv:
    """The stacked layers on the cells and taps that matter.

    Calls of one object share the maps between layers, so they must be ordered, as calls on one stream are. A video's
    rows do not depend on the other videos' values. A call queues work and does not wait; it can be captured in a graph
    after `prepare`.

    Args:
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded in.
        biases: per layer float32 [C_out].
        plan: what to compute.
        dtype: of operands and maps: float16, bfloat16 or float32 (float32 multiplies in float32, without tensor cores).
        device: a CUDA device; the CPU only in Triton's interpreter (TRITON_INTERPRET=1).
        config: block sizes for every number of videos; None takes the one chosen for each (`gather_choices`).

    Raises:
        ValueError: an argument cannot be used; the message says what was expected.
    """

    name = "gather"

    def __init__(
        self,
        weights: Sequence[FloatArray],
        biases: Sequence[FloatArray],
        plan: ProposalPlan,
        dtype: torch.dtype,
        device: torch.device,
        config: GatherConfig | None = None,
    ) -> None:
        check_layers(weights, biases, plan)
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {dtype}")
        if device.type != "cuda" and not (device.type == "cpu" and triton.knobs.runtime.interpret):
            raise ValueError(f"device: expected a CUDA device, or cpu with TRITON_INTERPRET=1, got {device}")
        self.plan, self.dtype, self.device = plan, dtype, device
        side = side_of_input(plan, 0)
        self.layout = MapLayout(side, (side - plan.num_clips) // 2, weights[0].shape[1])
        self._config = config
        self._weights = [torch.from_numpy(weight).to(device, dtype) for weight in weights]
        self._biases = [torch.from_numpy(bias).to(device, torch.float32) for bias in biases]
        self._packed: dict[tuple[int, int, int], Tensor] = {}
        self._prepared: dict[int, _Prepared] = {}
        self._on_gpu = device.type == "cuda"
        self._capability = torch.cuda.get_device_capability(device) if self._on_gpu else (0, 0)
        # Few programs without a device, so that tests loop over the work list as a device does.
        self._programs = torch.cuda.get_device_properties(device).multi_processor_count if self._on_gpu else 2

    def config_for(self, videos: int) -> GatherConfig:
        """The block sizes that a call with so many videos takes."""
        if self._config is not None:
            return self._config
        return shipped_config(self._capability, self.plan, len(self._biases[0]), videos)

    def prepare(self, videos: int) -> None:
        """Lay out work lists and maps for a number of videos; a call does it by itself unless a graph is captured.

        Raises:
            ValueError: below 1, or so many that a map has 2^31 values or more.
        """
        if videos in self._prepared:
            return
        widths = [self.layout.channels, *(len(bias) for bias in self._biases)]
        sides = [side_of_input(self.plan, number) for number in range(len(self._biases))]
        largest = max(side**2 * width for side, width in zip(sides, widths, strict=False))
        if not 1 <= videos <= (_INDEX_LIMIT - 1) // largest:
            raise ValueError(f"videos: expected 1 to {(_INDEX_LIMIT - 1) // largest} at once, got {videos}")
        if self._on_gpu and torch.cuda.is_current_stream_capturing():
            raise ValueError(f"videos: expected prepare({videos}) before a graph is captured, got none")
        config = self.config_for(videos)
        layers, partial_size = [], 0
        for number, layer in enumerate(self.plan.layers):
            work = -(-len(layer.cells) * videos // config.block_rows) * -(-widths[number + 1] // config.block_cols)
            splits = choose_splits(work, self._programs, config.max_splits)
            schedule = schedule_layer(self.plan, number, videos, config.block_rows, splits)
            layers.append(_Ready(schedule, self.device))
            if splits > 1:
                partial_size = max(partial_size, splits * schedule.rows * widths[number + 1])
            self._pack(number, config)
        # Cells that are not needed stay zero for good: no layer writes them.
        maps = [
            torch.zeros((side**2, videos, width), dtype=self.dtype, device=self.device)
            for side, width in zip(sides[1:], widths[1:], strict=False)
        ]
        partial = torch.empty(partial_size, dtype=torch.float32, device=self.device) if partial_size else None
        self._prepared[videos] = _Prepared(config, layers, maps, partial)

    def workspace_mib(self, videos: int) -> float:
        """MiB that `prepare` holds for a number of videos: maps, partial sums; packed weights are shared."""
        self.prepare(videos)
        held = self._prepared[videos]
        tensors = [*held.maps, *([] if held.partial is None else [held.partial])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20

    def _pack(self, number: int, config: GatherConfig) -> Tensor:
        """A layer's weights as [k*k * C_pad, N_pad], tap-major, zero beyond the channels."""
        key = (number, config.block_cols, config.block_k)
        if key not in self._packed:
            weight = self._weights[number]
            c_out, c_in = weight.shape[:2]
            c_pad, n_pad = round_up(c_in, config.block_k), round_up(c_out, config.block_cols)
            packed = weight.new_zeros((self.plan.kernel**2, c_pad, n_pad))
            packed[:, :c_in, :c_out] = weight.flatten(2).permute(2, 1, 0)
            self._packed[key] = packed.view(-1, n_pad)
        return self._packed[key]

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
        if videos == 0:
            return map_padded.new_empty((self.plan.num_proposals, 0, len(self._biases[-1])))
        self.prepare(videos)
        held = self._prepared[videos]
        rows = map_padded.new_empty((self.plan.num_proposals, videos, len(self._biases[-1])))
        x = map_padded
        for number, out in enumerate([*held.maps, rows]):
            self._run_layer(number, x, out, held)
            x = out
        return rows

    def _run_layer(self, number: int, x: Tensor, out: Tensor, held: _Prepared) -> None:
        config, ready = held.config, held.layers[number]
        schedule, videos = ready.schedule, x.shape[1]
        c_out, c_in = self._weights[number].shape[:2]
        packed = self._pack(number, config)
        c_pad, n_pad = len(packed) // self.plan.kernel**2, packed.shape[1]
        split = schedule.splits > 1
        descriptor = self._capability >= (9, 0) or not self._on_gpu
        overlap = self._capability >= (9, 0)
        options: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
        if overlap:
            options["launch_pdl"] = True
        work = len(schedule.items) * (n_pad // config.block_cols)
        gather_conv_kernel[(min(self._programs, work),)](
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
        if not split:
            return
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
    """The packed weights for the copy engine, in blocks of the configuration."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(packed, [config.block_k, config.block_cols])


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below a value."""
    return -(-value // multiple) * multiple


def check_layers(weights: Sequence[FloatArray], biases: Sequence[FloatArray], plan: ProposalPlan) -> None:
    """Raise ValueError unless weights and biases fit each other and the plan."""
    if not len(weights) == len(biases) == len(plan.layers):
        raise ValueError(f"weights, biases: expected {len(plan.layers)} of each, got {len(weights)} and {len(biases)}")
    if plan.kernel**2 > MAX_TAPS:
        raise ValueError(f"plan: expected a kernel of at most {MAX_TAPS} taps, got {plan.kernel**2}")
    width = weights[0].shape[1] if weights[0].ndim == 4 else 0
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        shape = (len(bias), width, plan.kernel, plan.kernel)
        if weight.shape != shape or bias.ndim != 1:
            raise ValueError(f"weights[{number}]: expected {list(shape)}, got {list(weight.shape)}")
        width = len(bias)
