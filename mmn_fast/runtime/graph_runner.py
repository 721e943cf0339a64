"""Runs programs on a device: by their CUDA graphs where those are on, one call at a time, within the device's memory.

A program is a function of tensors of static sizes that queues work and never waits: the same operations with a graph
and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmn_fast.kernels.gpu.captures import between_captures
from mmn_fast.kernels.gpu.device import out_of_memory, strict_arithmetic
from mmn_fast.kernels.gpu.recording import own_stream, record
from mmn_fast.process.forks import Lock, Opened
from mmn_fast.runtime.graph_cache import MIB, Captured, GraphCache

Program = Callable[..., tuple[Tensor, ...]]
Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Input:
    """An input of a program, on the device or in pinned memory.

    Attributes:
        tensor: the values, of the static size or with fewer rows.
        rows: the static number of rows; None for those of `tensor`. In the rows that `tensor` lacks a graph sees zeros
            or values of an earlier call, so nothing that is kept may depend on them.
    """

    tensor: Tensor
    rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The static size."""
        return (len(self.tensor) if self.rows is None else self.rows, *self.tensor.shape[1:])

    def copy_to(self, place: Tensor) -> None:
        """Queue a copy into a tensor of the static size."""
        place[: len(self.tensor)].copy_(self.tensor, non_blocking=True)

    def static(self, device: torch.device) -> Tensor:
        """A new tensor of the static size that holds the values, and zeros behind them."""
        place = torch.zeros(self.shape, dtype=self.tensor.dtype, device=device)
        self.copy_to(place)
        return place


class GraphRunner:
    """Runs programs; a lack of memory is one sentence and leaves it usable.

    Several runners may run in several threads, on one device or on many: their captures follow each other
    (`recording.record`), each on its runner's own stream.

    Args:
        device: where they run.
        graphs: whether to capture CUDA graphs.
        limit_bytes: device memory that graphs may hold.
        describe: of a program's name and its inputs' static sizes the words for an error: which program, how large,
            and how much memory it needs.
    """

    def __init__(
        self, device: torch.device, graphs: bool, limit_bytes: int, describe: Callable[[str, Shapes], str]
    ) -> None:
        self.device, self.graphs_on = device, graphs
        self._on_cuda = device.type == "cuda"
        self._describe = describe
        self._opened = Opened.here(f"device {str(device)!r}")
        self._lock = Lock()  # static inputs and outputs are one set
        self._graphs = GraphCache(limit_bytes, self._release_pool)
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None  # captures all graphs, since they share a pool
        self.on_release: list[Callable[[], None]] = []  # let go of what is kept between calls
        self._doing: tuple[str, Shapes] = ("load", ())

    def run(self, name: str, program: Program, inputs: Sequence[Input], arguments: tuple[int, ...]) -> Any:
        """Run a program, by its graph if there are graphs; within `running`.

        Args:
            name: what identifies the program.
            program: takes the inputs' tensors and the arguments.
            inputs: its tensors.
            arguments: numbers that a graph holds for good.

        Returns:
            Its outputs on the device, the caller's own.
        """
        shapes = [given.shape for given in inputs]
        self._doing = name, shapes
        if self.graphs_on:
            key = (name, *shapes, *arguments)
            captured = self._graphs.get(key, lambda: self._capture(program, inputs, arguments))
            if captured is not None:
                return captured.run(*inputs)
        return program(*(given.tensor.to(self.device, non_blocking=True) for given in inputs), *arguments)

    def pinned(self, array: npt.NDArray[Any]) -> Tensor:
        """A tensor of an array's values on the host, in pinned memory where there is a device."""
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        # The allocator of pinned memory gives a block again only when the copies from it are done.
        tensor = torch.empty(array.shape, dtype=dtype, pin_memory=self._on_cuda)
        np.copyto(tensor.numpy(), array)
        return tensor

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A tensor of an array's values on the device, without waiting."""
        return self.pinned(array).to(self.device, non_blocking=True)

    def check_process(self) -> None:
        """Refuse a forked process, where CUDA does not work.

        Raises:
            BackendUnavailable: this process was forked after the runner was made.
        """
        self._opened.check()

    @contextmanager
    def running(self) -> Iterator[None]:
        """What every use stands in.

        Raises:
            MemoryError: the device had too little memory; says for which program, at which sizes, and how much that
                needs. Graphs were let go, and the runner stays usable.
            BackendUnavailable: as `check_process`.
        """
        self.check_process()
        with self._lock, strict_arithmetic():
            try:
                with torch.cuda.device(self.device) if self._on_cuda else nullcontext():
                    yield
            except RuntimeError as error:
                cause = out_of_memory(error)
                if cause is None:
                    raise
                described = self._describe(*self._doing)
                self._doing = "load", ()
                self._graphs.clear()
                raise MemoryError(
                    f"native: out of device memory in {described}: {str(cause).splitlines()[0]}; graphs were let go,"
                    " the engine stays usable"
                ) from None

    def info(self) -> dict[str, Any]:
        """The device, and the graphs and memory held on it, in MiB."""
        self.check_process()
        facts: dict[str, Any] = {
            "device": str(self.device),
            "torch": torch.__version__,
            "use_graphs": self.graphs_on,
            **self._graphs.info(),
        }
        if self._on_cuda:
            facts["device"] += f" ({torch.cuda.get_device_name(self.device)})"
            facts["device_mib"] = round(torch.cuda.memory_reserved(self.device) / MIB, 1)
            facts["peak_device_mib"] = round(torch.cuda.max_memory_allocated(self.device) / MIB, 1)
        return facts

    def _capture(self, program: Program, inputs: Sequence[Input], arguments: tuple[int, ...]) -> Captured:
        self._empty_cache()  # as the capture does: what it frees must not count against the graph
        before = torch.cuda.memory_reserved(self.device)
        static = [given.static(self.device) for given in inputs]
        program(*static, *arguments)  # libraries make their handles, and kernels are compiled, outside of the capture
        if self._stream is None:
            self._stream = own_stream(self.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        recording = record(lambda: program(*static, *arguments), self._stream, self._pool)

        def run(*given: Input) -> tuple[Tensor, ...]:
            for place, one in zip(static, given, strict=True):
                one.copy_to(place)
            # Graphs share a pool: the next one may write where this one's outputs are.
            return tuple(output.clone() for output in recording.replay())

        return Captured(run, max(torch.cuda.memory_reserved(self.device) - before, 0))

    def _release_pool(self) -> None:
        self._pool = None
        for release in self.on_release:
            release()
        if self._on_cuda:
            self._empty_cache()

    def _empty_cache(self) -> None:
        with between_captures():
            torch.cuda.empty_cache()
