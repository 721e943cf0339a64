"""Runs programs on a device, one call at a time, within the device's memory, and by CUDA graphs if these are on.

A program is a function of tensors of static sizes. It queues work and never waits; its operations are the same with a
graph and without.
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
        rows: the static number of rows; None means `len(tensor)`. Rows beyond `tensor` are undefined (zeros or values
            of an earlier call); results that are kept must not depend on them.
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
        """Make a tensor of the static size that holds the values, then zeros."""
        place = torch.zeros(self.shape, dtype=self.tensor.dtype, device=device)
        self.copy_to(place)
        return place


class GraphRunner:
    """Runs programs. A lack of memory raises one sentence and leaves the runner usable.

    Several runners may run in several threads, on one device or on many. Their captures follow each other
    (`recording.record`), each on its runner's own stream.

    Args:
        device: the device that runs the programs.
        graphs: whether to capture CUDA graphs.
        limit_bytes: device memory that graphs may hold.
        describe: words for an error, from a program's name and its inputs' static sizes: the program, its sizes, and
            the memory that it needs.
    """

    def __init__(
        self, device: torch.device, graphs: bool, limit_bytes: int, describe: Callable[[str, Shapes], str]
    ) -> None:
        self.device, self.graphs_on = device, graphs
        self._on_cuda = device.type == "cuda"
        self._describe = describe
        self._opened = Opened.here(f"device {str(device)!r}")
        self._lock = Lock()  # calls share one set of static inputs and outputs
        self._graphs = GraphCache(limit_bytes, self._release_pool)
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None  # captures all graphs, since they share a pool
        self.on_release: list[Callable[[], None]] = []  # each frees memory that is kept between calls
        self._doing: tuple[str, Shapes] = ("load", ())

    def run(self, name: str, program: Program, inputs: Sequence[Input], arguments: tuple[int, ...]) -> Any:
        """Run a program, by its graph if graphs are on. Call this within `running`.

        Args:
            name: identifies the program.
            program: takes the inputs' tensors and the arguments.
            inputs: the program's inputs.
            arguments: numbers that are fixed in a graph.

        Returns:
            The program's outputs on the device; the caller owns them.
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
        """Copy an array to a tensor on the host, in pinned memory if there is a CUDA device."""
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        # The allocator of pinned memory reuses a block only when the copies from it are done.
        tensor = torch.empty(array.shape, dtype=dtype, pin_memory=self._on_cuda)
        np.copyto(tensor.numpy(), array)
        return tensor

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """Copy an array to a tensor on the device, without waiting."""
        return self.pinned(array).to(self.device, non_blocking=True)

    def check_process(self) -> None:
        """Refuse a forked process, where CUDA does not work.

        Raises:
            BackendUnavailable: this process was forked after the runner was made.
        """
        self._opened.check()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context of every use: holds the lock and turns a lack of memory into one sentence.

        Raises:
            MemoryError: the device had too little memory; the message names the program, its sizes and the memory that
                it needs. Graphs were dropped, and the runner stays usable.
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
                    f"native: out of device memory in {described}: {str(cause).splitlines()[0]}; graphs were dropped,"
                    " the engine stays usable"
                ) from None

    def info(self) -> dict[str, Any]:
        """The device, its graphs and their memory in MiB."""
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
        self._empty_cache()  # the capture empties it too; the freed memory must not count against the graph
        before = torch.cuda.memory_reserved(self.device)
        static = [given.static(self.device) for given in inputs]
        program(*static, *arguments)  # before the capture: libraries make their handles, kernels are compiled
        if self._stream is None:
            self._stream = own_stream(self.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        recording = record(lambda: program(*static, *arguments), self._stream, self._pool)

        def run(*given: Input) -> tuple[Tensor, ...]:
            for place, one in zip(static, given, strict=True):
                one.copy_to(place)
            # Graphs share a pool, so the next graph may overwrite these outputs.
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
