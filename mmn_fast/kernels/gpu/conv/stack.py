"""The common base of convolutions in Triton: a stack of layers over dense maps; any kernels can run any layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import triton
from torch import Tensor

from mmn_fast.arrays import Float32
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig, chosen_config
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.gather_schedule import side_of_input
from mmn_fast.kernels.gpu.device import capability_of
from mmn_fast.precisions import precision_of

ConfigFor = Callable[[int], GatherConfig]
"""Number of videos -> block sizes."""

INDEX_LIMIT = 2**31
CHANNELS = 16
"""Kernels here are compiled for widths that are multiples of this; other layers are filled up with zeros.

Then every row is aligned to 32 bytes or more, and asynchronous copies bring operands to shared memory. At odd widths in
16 bits there are no such copies: threads store operands themselves. For sm_90, Triton 3.6 then places the fence that
shows these stores to the tensor cores after the barrier, in threads that did not store. No documentation says that this
is enough.
"""
_PROGRAMS_INTERPRETED = 2  # few, so that tests loop over a work list as a device does


@dataclass(frozen=True)
class MapLayout:
    """The layout of a convolution's input map: [side^2, B, channels], contiguous, zero outside the plan's cells.

    Cell (i, j) stands at row (i + border) * side + j + border.
    """

    side: int
    border: int
    channels: int

    def check(self, map_padded: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Raise ValueError unless a map has this layout and dtype and is on this device."""
        expected = (self.side**2, self.channels)
        if map_padded.ndim != 3 or (map_padded.shape[0], map_padded.shape[2]) != expected:
            raise ValueError(f"map_padded: expected [{expected[0]}, B, {expected[1]}], got {list(map_padded.shape)}")
        if map_padded.dtype != dtype or map_padded.device.type != device.type:
            raise ValueError(f"map_padded: expected {dtype} on {device}, got {map_padded.dtype} on {map_padded.device}")
        if not map_padded.is_contiguous():
            raise ValueError(f"map_padded: expected contiguous, got strides {map_padded.stride()}")


class ConvStack(ABC):
    """Runs the stacked layers one after the other.

    Every layer but the last writes its needed cells into a dense map [side^2, B, C], videos minor to cells; the map's
    other cells always stay zero. The last layer writes the plan's cells, [P, B, C]. So any kernels can run any layer.

    Kernels see widths that are filled up with zeros to multiples of `CHANNELS`; a call's map and result have the
    model's own widths.

    Calls of one object share the maps and the kernels' scratch memory, so they must be ordered, like calls on one
    stream. A video's rows do not depend on the other videos' values. A call queues work and does not wait; it can be
    captured in a graph after `prepare`.

    Args:
        settings: the layers. Their dtype, also that of maps, is one of `dtypes`; float32 multiplies in float32, without
            tensor cores. The device is a CUDA device, or the CPU in Triton's interpreter (`interpreter`).
        config: block sizes for every number of videos, or a function that chooses them for a number of videos; None
            takes tuned or shipped ones (`block_sizes`).

    Raises:
        ValueError: an argument cannot be used; the message says what was expected.
    """

    name: str
    dtypes: ClassVar[tuple[torch.dtype, ...]]
    max_kernel: int

    def __init__(self, settings: ConvSettings, config: GatherConfig | ConfigFor | None = None) -> None:
        plan, dtype, device = settings.plan, settings.dtype, settings.device
        check_layers(settings)
        if plan.kernel > self.max_kernel:
            raise ValueError(f"plan: expected a kernel of at most {self.max_kernel}, got {plan.kernel}")
        if dtype not in self.dtypes:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, self.dtypes))}, got {dtype}")
        if device.type != "cuda" and not (device.type == "cpu" and triton.knobs.runtime.interpret):
            raise ValueError(f"device: expected a CUDA device, or cpu in Triton's interpreter, got {device}")
        self.plan, self.dtype, self.device = plan, dtype, device
        side = side_of_input(plan, 0)
        self.layout = MapLayout(side, (side - plan.num_clips) // 2, settings.widths[0])
        self.channels = settings.widths  # the model's widths
        self.widths = [round_up(channels, CHANNELS) for channels in self.channels]  # the kernels' widths
        self._config, self._chosen = config, dict[int, GatherConfig]()
        self._maps: dict[int, list[Tensor]] = {}
        self._filled: dict[int, tuple[Tensor | None, Tensor | None]] = {}  # a map and rows of whole widths, if needed
        self.on_gpu, self.capability = device.type == "cuda", capability_of(device)
        self.programs = _PROGRAMS_INTERPRETED
        if self.on_gpu:
            self.programs = torch.cuda.get_device_properties(device).multi_processor_count

    def config_for(self, videos: int) -> GatherConfig:
        """The block sizes of a call with so many videos; they stay the same until `release`."""
        if videos not in self._chosen:
            self._chosen[videos] = self._config(videos) if callable(self._config) else self.known_config(videos)
        return self._chosen[videos]

    def known_config(self, videos: int) -> GatherConfig:
        """The result of `config_for`, but without measuring: chosen block sizes, else given, tuned or shipped ones."""
        if videos in self._chosen:
            return self._chosen[videos]
        if isinstance(self._config, GatherConfig):
            return self._config
        precision = precision_of(self.dtype)
        return chosen_config(self.name, self.capability, self.plan, self.channels[-1], videos, precision)

    def prepare(self, videos: int) -> None:
        """Lay out tables, maps and scratch memory; a call outside a capture does this itself.

        Args:
            videos: B.

        Raises:
            ValueError: `videos` is below 1, or so large that a map has 2^31 values or more.
        """
        if videos in self._maps:
            return
        most = (INDEX_LIMIT - 1) // self._values_indexed()
        if not 1 <= videos <= most:
            raise ValueError(f"videos: expected 1 to {most} at once, got {videos}")
        if self.on_gpu and torch.cuda.is_current_stream_capturing():
            raise ValueError(f"videos: expected prepare({videos}) before a graph is captured, got none")
        self.prepare_layers(range(len(self.plan.layers)), videos)
        self._maps[videos] = [
            torch.zeros((cells, videos, width), dtype=self.dtype, device=self.device)
            for cells, width in self._maps_between()
        ]
        wide_map, wide_rows = (
            torch.zeros((cells, videos, width), dtype=self.dtype, device=self.device) if cells else None
            for cells, width in self._ends()
        )
        self._filled[videos] = wide_map, wide_rows

    def workspace_bytes(self, videos: int) -> int:
        """Computed size of the maps and scratch memory that `prepare` holds for a number of videos."""
        values = sum(cells * width for cells, width in [*self._maps_between(), *self._ends()])
        return values * videos * self.dtype.itemsize + self.scratch_bytes(range(len(self.plan.layers)), videos)

    def release(self) -> None:
        """Free everything that `prepare` holds; graphs captured before must not be replayed any more."""
        self._maps.clear()
        self._filled.clear()
        self._chosen.clear()

    def __call__(self, map_padded: Tensor) -> Tensor:
        """`reference.proposal_conv_packed` on the padded map.

        Args:
            map_padded: dtype [side^2, B, C_0], contiguous, see `layout`.

        Returns:
            dtype [P, B, C]: the last layer at the plan's cells.

        Raises:
            ValueError: the map's shape, dtype, device or strides differ from this.
        """
        self.layout.check(map_padded, self.dtype, self.device)
        videos = map_padded.shape[1]
        rows = map_padded.new_empty((self.plan.num_proposals, videos, self.channels[-1]))
        if videos == 0:
            return rows
        for run in self.layer_runs(map_padded, rows):
            run()
        return rows

    def layer_runs(self, map_padded: Tensor, rows: Tensor) -> list[Callable[[], Any]]:
        """Make one function per layer that queues the layer; the first reads `map_padded`, the last writes `rows`.

        Args:
            map_padded: the input, as in a call.
            rows: dtype [P, B, C], the rows of the plan's cells.
        """
        videos = map_padded.shape[1]
        self.prepare(videos)
        wide_map, wide_rows = self._filled[videos]
        first, last = map_padded if wide_map is None else wide_map, rows if wide_rows is None else wide_rows
        maps = [first, *self._maps[videos], last]
        runs: list[Callable[[], Any]] = [
            partial(self.run_layer, number, *pair) for number, pair in enumerate(pairwise(maps))
        ]
        if wide_map is not None:
            runs[0] = partial(_in_turn, partial(wide_map[..., : self.channels[0]].copy_, map_padded), runs[0])
        if wide_rows is not None:
            runs[-1] = partial(_in_turn, runs[-1], partial(rows.copy_, wide_rows[..., : self.channels[-1]]))
        return runs

    def info(self) -> dict[str, Any]:
        """Facts for `Engine.info`."""
        return {"proposal_conv": self.name}

    @abstractmethod
    def prepare_layers(self, numbers: Sequence[int], videos: int) -> None:
        """Lay out tables and scratch memory of some layers for a number of videos."""

    @abstractmethod
    def scratch_bytes(self, numbers: Sequence[int], videos: int) -> int:
        """Computed size of the scratch memory that `prepare_layers` holds, with the block sizes of `known_config`."""

    @abstractmethod
    def run_layer(self, number: int, x: Tensor, out: Tensor) -> None:
        """Queue one prepared layer, from its input map to its output map or to the rows of the plan's cells."""

    def _maps_between(self) -> list[tuple[int, int]]:
        """Cells and channels of the maps between layers."""
        return [(side_of_input(self.plan, n) ** 2, self.widths[n]) for n in range(1, len(self.plan.layers))]

    def _ends(self) -> list[tuple[int, int]]:
        """Cells and channels of the filled-up map and rows; 0 cells if the model's own width needs no filling."""
        ends = ((self.layout.side**2, 0), (self.plan.num_proposals, -1))
        return [(cells if self.channels[at] != self.widths[at] else 0, self.widths[at]) for cells, at in ends]

    def _values_indexed(self) -> int:
        """Values of one video in the largest array that is indexed in 32 bits."""
        return max(cells * width for cells, width in [(self.layout.side**2, self.widths[0]), *self._maps_between()])


def round_up(value: int, multiple: int) -> int:
    """Round a value up to a multiple."""
    return -(-value // multiple) * multiple


def _in_turn(*works: Callable[[], Any]) -> None:
    for work in works:
        work()


def whole_widths(weight: Float32, bias: Float32) -> tuple[Float32, Float32]:
    """A layer's weights [C_out, C_in, k, k] and bias [C_out], filled up with zeros to multiples of `CHANNELS`."""
    out, into = (round_up(size, CHANNELS) - size for size in weight.shape[:2])
    if not out and not into:
        return weight, bias
    return np.pad(weight, ((0, out), (0, into), (0, 0), (0, 0))), np.pad(bias, (0, out))


def check_layers(settings: ConvSettings) -> None:
    """Raise ValueError unless weights and biases fit each other and the plan."""
    weights, biases, plan = settings.weights, settings.biases, settings.plan
    if not len(weights) == len(biases) == len(plan.layers):
        raise ValueError(f"weights, biases: expected {len(plan.layers)} of each, got {len(weights)} and {len(biases)}")
    width = weights[0].shape[1] if weights[0].ndim == 4 else 0
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        shape = (len(bias), width, plan.kernel, plan.kernel)
        if weight.shape != shape or bias.ndim != 1:
            raise ValueError(f"weights[{number}]: expected {list(shape)}, got {list(weight.shape)}")
        width = len(bias)
