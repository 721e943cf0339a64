"""Measures block sizes and layer times of the proposal convolution once per device, and keeps them (`block_sizes`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Protocol

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from mmn_fast.errors import WriteError
from mmn_fast.kernels.gpu.clock import DeviceClock, Run
from mmn_fast.kernels.gpu.conv.block_sizes import (
    GatherConfig,
    Times,
    arch_of,
    chosen_config,
    config_key,
    keep,
    kept_config,
    kept_times,
    times_key,
)
from mmn_fast.kernels.gpu.conv.costs import choose_layers, engine_algorithms, not_timed, usable_algorithms
from mmn_fast.kernels.gpu.conv.crop import ConvSettings, CropProposalConv
from mmn_fast.kernels.gpu.conv.fourier import FourierProposalConv
from mmn_fast.kernels.gpu.conv.mixed import MixedProposalConv, make_stack
from mmn_fast.kernels.gpu.conv.stack import ConvStack
from mmn_fast.kernels.gpu.device import capability_of
from mmn_fast.precisions import precision_of

_LOG = logging.getLogger(__name__)
_SAMPLES = 5


class Clock(Protocol):
    """Times work on a device, like `clock.DeviceClock`."""

    def whole_ms(self, queue: Run) -> float:
        """Milliseconds of the work that a function queues."""

    def layers_ms(self, runs: Sequence[Run], whole_ms: float) -> list[float]:
        """Milliseconds of each run of a stack, as shares of the stack's time."""


def candidates(algorithm: str, shared_bytes: int, width: int, precision: str = "fp16") -> list[GatherConfig]:
    """Block sizes worth timing.

    Args:
        algorithm: one of `costs.ALGORITHMS`.
        shared_bytes: shared memory that a block can have.
        width: C; no block is more than twice as wide.
        precision: "fp16", "bf16" or "fp32". fp32 uses no tensor cores and takes small blocks.
    """
    single, gather = precision == "fp32", algorithm == "gather"
    operands, splits = (1, 8) if gather else (2, 1)  # blocks per operand, most shares of a sum
    if single:
        every = [GatherConfig(rows, cols, 16, 4, 3, splits) for rows, cols in product((32, 64), (32, 64))]
    elif gather:
        every = [
            GatherConfig(rows, cols, 64, 4 if rows * cols <= 64 * 128 else 8, stages, splits)
            for rows, cols, stages in product((64, 128), (128, 256), (4, 3))
        ]
    else:
        every = [
            GatherConfig(rows, cols, k, 8, stages, splits)
            for rows, cols, (k, stages) in product((64, 128), (64, 128), ((64, 3), (32, 4)))
        ]
    return [
        config
        for config in every
        if operands * config.shared_bytes(4 if single else 2) <= shared_bytes and config.block_cols < 2 * width
    ]


def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a block can have: the limit that Triton applies to compiled kernels."""
    index = torch.cuda.current_device() if device.index is None else device.index
    found: int = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return found


def fastest(configs: Iterable[GatherConfig], time_ms: Callable[[GatherConfig], float]) -> GatherConfig:
    """The fastest configuration, the first of equal ones; configurations that do not fit are skipped.

    Raises:
        ValueError: no configuration fits.
    """
    taken: dict[GatherConfig, float] = {}
    for config in configs:
        try:
            taken[config] = time_ms(config)
        except (OutOfResources, torch.OutOfMemoryError) as error:
            _LOG.info("%s does not fit: %s", config, str(error).splitlines()[0])
    if not taken:
        raise ValueError("configs: expected one that fits the device, got none")
    return min(taken, key=lambda config: taken[config])


def _keep(arch: str, key: str, found: GatherConfig | Times) -> None:
    """Keep a measurement; if the disk refuses it, the next process measures again."""
    try:
        keep(arch, key, found)
    except (OSError, WriteError) as error:
        _LOG.warning("tuned choices cannot be kept (%s); the next process measures again", error)


class Tuner:
    """Measures missing block sizes and times on a device, and keeps them.

    Args:
        settings: the layers, and the device to measure on. The weights may have any values, but not all zero.
        clock: times the work.
        shared_bytes: shared memory that a block can have; None asks the device.
    """

    def __init__(self, settings: ConvSettings, clock: Clock | None = None, shared_bytes: int | None = None) -> None:
        self._settings, device = settings, settings.device
        self._plan, self._width = settings.plan, settings.widths[-1]
        self._clock = clock or DeviceClock(samples=_SAMPLES)
        self._shared_bytes = _shared_bytes(device) if shared_bytes is None else shared_bytes
        self._capability, self._precision = capability_of(device), precision_of(settings.dtype)

    def config_for(self, algorithm: str, videos: int) -> GatherConfig:
        """The fastest block sizes of an algorithm for a number of videos; measured if none are kept."""
        key = config_key(algorithm, self._plan, self._width, videos, self._precision)
        found = kept_config(self._capability, key)
        if found is None:
            _LOG.info("tuning %s for %d videos, once for this device", algorithm, videos)
            found = self.measure_config(algorithm, videos)
            _keep(arch_of(self._capability), key, found)
        return found

    def measure_config(self, algorithm: str, videos: int) -> GatherConfig:
        """Measure block sizes now; return the fastest."""
        known = chosen_config(algorithm, self._capability, self._plan, self._width, videos, self._precision)
        every = dict.fromkeys([known, *candidates(algorithm, self._shared_bytes, self._width, self._precision)])
        return fastest(every, lambda config: self._stack_ms(algorithm, videos, config))

    def times(self, videos: int) -> Times:
        """All times that `costs.not_timed` needs; measured unless all are kept."""
        key, arch = times_key(self._plan, self._width, videos, self._precision), arch_of(self._capability)
        found = kept_times(arch, key)
        if found is not None and not not_timed(found, self._plan.kernel, self._precision):
            return found
        _LOG.info("timing the proposal convolution for %d videos, once for this device", videos)
        found, map_padded = {}, Tensor()
        for name in usable_algorithms(self._plan.kernel, self._settings.dtype in FourierProposalConv.dtypes):
            stack = make_stack(name, self._settings, partial(self.config_for, name))
            map_padded, rows = self._maps(stack, videos)
            whole_ms = self._clock.whole_ms(partial(stack, map_padded))
            found[name] = self._clock.layers_ms(stack.layer_runs(map_padded, rows), whole_ms)
        found["crop"] = [self._clock.whole_ms(partial(CropProposalConv(self._settings), map_padded))]
        chosen = choose_layers(found, engine_algorithms(self._plan, self._settings.widths, self._precision))
        if len(set(chosen)) == 1:
            found["mixed"] = [sum(found[chosen[0]])]
        else:
            configs = {name: partial(self.config_for, name) for name in set(chosen)}
            mixed = MixedProposalConv(self._settings, {videos: chosen}, configs=configs)
            found["mixed"] = [self._clock.whole_ms(partial(mixed, map_padded))]
        _keep(arch, key, found)
        return found

    def measure(self, videos: Iterable[int]) -> None:
        """Measure `times` for ascending numbers of videos; stop at the first that does not fit the device's memory."""
        for number in videos:
            try:
                self.times(number)
            except torch.OutOfMemoryError:
                _LOG.info("%d videos do not fit the device's memory: not timed", number)
                break

    def _stack_ms(self, algorithm: str, videos: int, config: GatherConfig) -> float:
        stack = make_stack(algorithm, self._settings, config)
        return self._clock.whole_ms(partial(stack, self._maps(stack, videos)[0]))

    def _maps(self, stack: ConvStack, videos: int) -> tuple[Tensor, Tensor]:
        """A padded map of random values (zeros are multiplied faster), and rows for the result."""
        layout = stack.layout
        generator = torch.Generator(stack.device).manual_seed(0)
        shape = (layout.side**2, videos, layout.channels)
        map_padded = torch.rand(shape, generator=generator, device=stack.device).to(stack.dtype)
        return map_padded, map_padded.new_empty((self._plan.num_proposals, videos, self._width))
