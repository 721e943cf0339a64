"""Runs TensorRT plans: execution contexts, memory, and CUDA graphs. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.artifact.manifest import Manifest, Signature
from mmn_fast.artifact.sidecar import (
    Profile,
    Sidecar,
    check_sidecar,
    choose_profile,
    plan_path,
    read_sidecar,
    unfit_reason,
)
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.kernels.gpu.captures import capturing
from mmn_fast.runtime.cuda_api import Cuda, Gpu, Resource
from mmn_fast.runtime.tensorrt_module import RUNTIME, make_logger, tensorrt_module

Arrays = dict[str, npt.NDArray[Any]]


class Plan:
    """A plan on its GPU: `enqueue` takes device pointers and the caller's stream, `run` takes NumPy arrays.

    Each profile has its own execution context, so that its captured graph stays valid while another profile runs. All
    contexts share one scratch memory, so calls on different streams must wait for each other.

    Args:
        trt: the TensorRT module.
        runtime: the module's runtime.
        logger: the runtime's logger.
        cuda: the GPU.
        scratch: working memory, shared by the plans of a backend.
        path: the plan's file.
        signature: inputs and outputs of the plan's graph.
        profiles: the profiles in the plan's sidecar.
        cuda_graphs: capture each profile on its second call.

    Raises:
        BackendUnavailable: TensorRT does not read the plan.
        InputError: the plan's inputs, outputs or profiles differ from the expected ones.
    """

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        logger: Any,
        cuda: Cuda,
        scratch: _Scratch,
        path: Path,
        signature: Signature,
        profiles: tuple[Profile, ...],
        cuda_graphs: bool,
    ) -> None:
        self.signature, self.profiles = signature, profiles
        self._trt, self._cuda, self._scratch, self._path, self._logger = trt, cuda, scratch, path, logger
        self._cuda_graphs = cuda_graphs
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BackendUnavailable(f"{path}: TensorRT does not read the plan ({logger.last_error})")
        self._runtime = runtime  # must outlive its engines
        self._check_tensors()
        self._slots: dict[int, _Slot] = {}
        self._inputs: dict[tuple[int, str], Resource] = {}

    def enqueue(self, addresses: Mapping[str, int], profile: int, stream: int) -> dict[str, int]:
        """Enqueue one run on the caller's stream.

        Args:
            addresses: input -> device address of a contiguous array of the profile's largest shape; the array must not
                change until the stream has run.
            profile: number of the profile.
            stream: handle of the caller's CUDA stream, not the default one.

        Returns:
            Output -> device address of a contiguous array of that size. The plan owns the array, and the next run of
            the same profile overwrites it.

        Raises:
            BackendUnavailable: TensorRT refuses the run; the message quotes its error.
        """
        slot = self._slots.get(profile)
        if slot is None:
            slot = self._slots[profile] = self._new_slot(profile, stream)
        self._scratch.reserve(slot.scratch_size)
        if slot.scratch != self._scratch.memory:
            slot.scratch, slot.graph = self._scratch.memory, None
            slot.context.set_device_memory(self._scratch.address, self._scratch.size)
        if slot.addresses != addresses:
            for name, address in addresses.items():
                self._must(slot.context.set_tensor_address(name, address), f"the address of {name}")
            slot.addresses, slot.graph = dict(addresses), None
        if slot.graph is None and slot.has_run and self._cuda_graphs:
            slot.graph = self._capture(slot, stream)
        if slot.graph is not None:
            self._cuda.launch(slot.graph, stream)
        else:
            self._execute(slot, stream)
            slot.has_run = True
        return {name: memory.handle for name, (memory, _) in slot.outputs.memory.items()}

    def run(self, inputs: Arrays, stream: int) -> Arrays:
        """Pad a batch to the profile that takes it, run it and wait.

        Args:
            inputs: the signature's inputs; each dynamic axis is at least 1 and within the largest profile.
            stream: handle of a CUDA stream.

        Returns:
            The outputs, new arrays of the inputs' sizes.
        """
        sizes = {
            axis: size
            for spec in self.signature.inputs
            for axis, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }
        number = choose_profile(self.profiles, sizes)
        assert number is not None, (sizes, self.profiles)  # callers cut batches to the largest profile
        padded = self.profiles[number].sizes
        held = []  # arrays that must live until the stream has run
        addresses = {}
        for spec in self.signature.inputs:
            array = _padded(inputs[spec.name], _shape(spec.shape, padded), np.dtype(spec.dtype))
            memory = self._input(number, spec.name, array.nbytes)
            self._cuda.upload(memory.handle, array, stream)
            addresses[spec.name] = memory.handle
            held.append(array)
        outputs = self.enqueue(addresses, number, stream)
        given: Arrays = {}
        for spec in self.signature.outputs:
            given[spec.name] = np.empty(_shape(spec.shape, sizes), spec.dtype)  # the first rows of the padded output
            self._cuda.download(given[spec.name], outputs[spec.name], stream)
        self._cuda.synchronize(stream)
        return given

    def _input(self, profile: int, name: str, size: int) -> Resource:
        key = profile, name
        if key not in self._inputs:
            self._inputs[key] = self._cuda.allocate(size)
        return self._inputs[key]

    def _new_slot(self, number: int, stream: int) -> _Slot:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise BackendUnavailable(f"{self._path}: TensorRT gives no context ({self._logger.last_error})")
        self._must(context.set_optimization_profile_async(number, stream), f"profile {number}")
        sizes = self.profiles[number].sizes
        for spec in self.signature.inputs:
            self._must(context.set_input_shape(spec.name, _shape(spec.shape, sizes)), f"the shape of {spec.name}")
        outputs = _output_allocator(self._trt, self._cuda)
        for spec in self.signature.outputs:
            self._must(context.set_output_allocator(spec.name, outputs), f"the allocator of {spec.name}")
        return _Slot(context, outputs, self._engine.get_device_memory_size_for_profile_v2(number))

    def _execute(self, slot: _Slot, stream: int) -> None:
        slot.outputs.error = None  # forget an earlier run's error
        done = slot.context.execute_async_v3(stream)
        if slot.outputs.error is not None:
            raise slot.outputs.error
        self._must(done, "to run")
        sizes = self.profiles[next(n for n, one in self._slots.items() if one is slot)].sizes
        for spec in self.signature.outputs:
            expected = _shape(spec.shape, sizes)
            found = slot.outputs.memory[spec.name][1]
            if found != expected:
                raise BackendUnavailable(f"{self._path}: {spec.name}: expected {expected}, TensorRT gives {found}")

    def _capture(self, slot: _Slot, stream: int) -> Resource:
        with capturing():
            self._cuda.begin_capture(stream)
            try:
                self._execute(slot, stream)
                return self._cuda.end_capture(stream)
            except BaseException as error:  # not even Ctrl-C may leave the stream recording
                self._cuda.abandon_capture(stream)
                if not isinstance(error, BackendUnavailable):
                    raise
                raise BackendUnavailable(
                    f"{error}; it cannot be captured as a CUDA graph, load it with"
                    " backend_options={'cuda_graphs': False}"
                ) from None

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise BackendUnavailable(f"{self._path}: TensorRT refuses {what} ({self._logger.last_error})")

    def _check_tensors(self) -> None:
        """Check the plan's own inputs, outputs and profiles against the graph's signature and the sidecar."""
        trt, engine = self._trt, self._engine
        types = {trt.DataType.FLOAT: "float32", trt.DataType.INT64: "int64"}
        modes = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        found = {
            (
                modes.get(engine.get_tensor_mode(name)),
                name,
                types.get(engine.get_tensor_dtype(name)),
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
        }
        expected = {
            (mode, spec.name, spec.dtype, _shape(spec.shape, dict.fromkeys("BSLR", -1)))
            for mode, specs in (("input", self.signature.inputs), ("output", self.signature.outputs))
            for spec in specs
        }
        if found != expected:
            odd = sorted(map(str, found ^ expected))[0]
            raise InputError(f"{self._path}: inputs and outputs are not those of its graph: {odd}")
        if engine.num_optimization_profiles != len(self.profiles):
            raise InputError(
                f"{self._path}: expected {len(self.profiles)} profiles, got {engine.num_optimization_profiles}"
            )
        for number, profile in enumerate(self.profiles):
            for spec in self.signature.inputs:
                if not any(isinstance(size, str) for size in spec.shape):
                    continue
                shapes = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, number))
                if shapes != profile.shapes(spec):
                    raise InputError(
                        f"{self._path}: profile {number}: {spec.name}: expected {profile.shapes(spec)}, got {shapes}"
                    )


class _Slot:
    """The state of one profile: its context, its input and output memory, and its captured graph."""

    def __init__(self, context: Any, outputs: Any, scratch_size: int) -> None:
        self.context, self.outputs, self.scratch_size = context, outputs, scratch_size
        self.addresses: dict[str, int] = {}
        self.scratch: Resource | None = None
        self.graph: Resource | None = None
        self.has_run = False


class _Scratch:
    """Working memory that all contexts share. When it grows, its address changes and captured graphs are void."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.size = cuda, 0
        self.memory: Resource | None = None

    @property
    def address(self) -> int:
        return 0 if self.memory is None else int(self.memory.handle)

    def reserve(self, size: int) -> None:
        """Grow to at least `size` bytes; nothing may be running."""
        if size > self.size:
            self.memory, self.size = None, 0  # free the old memory first, so that both are never held at once
            self.memory, self.size = self._cuda.allocate(size), size


def open_plans(
    directory: Path,
    manifest: Manifest,
    graphs: Sequence[str],
    cuda: Cuda,
    *,
    allow_host_code: bool = False,
    cuda_graphs: bool = True,
) -> tuple[dict[str, Plan], str]:
    """Open plans of an export on a GPU; everything is checked before TensorRT reads the first plan.

    Args:
        directory: the export.
        manifest: the export's manifest.
        graphs: the graphs whose plans to open.
        cuda: the GPU.
        allow_host_code: run the code that a version-compatible plan holds.
        cuda_graphs: see `Plan`.

    Returns:
        The plans, and the name and version of the runtime.

    Raises:
        InputError: a graph, plan or sidecar is missing, or a plan is of another model.
        BackendUnavailable: TensorRT is missing, or a plan is for another GPU or version or holds host code.
    """
    trt, reason = tensorrt_module(RUNTIME)
    if reason is not None:
        raise BackendUnavailable(reason)
    sidecars = _fitting_plans(directory, manifest, graphs, trt.__version__, cuda.gpu(), allow_host_code)
    logger = make_logger(trt)
    runtime = trt.Runtime(logger)
    if allow_host_code:
        runtime.engine_host_code_allowed = True
    scratch = _Scratch(cuda)
    plans = {
        graph: Plan(
            *(trt, runtime, logger, cuda, scratch, plan_path(directory, graph)),
            *(manifest.signature(graph), sidecar.profiles, cuda_graphs),
        )
        for graph, sidecar in sidecars.items()
    }
    return plans, f"{trt.__name__} {trt.__version__}"


def _fitting_plans(
    directory: Path, manifest: Manifest, graphs: Sequence[str], version: str, gpu: Gpu, allow_host_code: bool
) -> dict[str, Sidecar]:
    """Read the sidecars of some plans, and refuse plans that cannot run here."""
    found = {}
    for graph in graphs:
        if graph not in manifest.graphs:
            raise InputError(f"model: {directory} has no {graph} graph; export the model with --what all")
        sidecar = read_sidecar(directory, graph)
        check_sidecar(directory, sidecar, graph, manifest)
        reason = unfit_reason(sidecar, version, gpu.name, gpu.compute_capability)
        if reason is None and sidecar.version_compatible and not allow_host_code:
            reason = "it is version-compatible and holds host code; backend_options={'allow_host_code': True} runs it"
        if reason is not None:
            raise BackendUnavailable(f"{plan_path(directory, graph)}: {reason}")
        found[graph] = sidecar
    return found


def _output_allocator(trt: Any, cuda: Cuda) -> Any:
    """Make an allocator that keeps its memory and only ever grows it, so that a captured run allocates nothing."""

    class OutputAllocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory: dict[str, tuple[Resource, tuple[int, ...]]] = {}
            self.sizes: dict[str, int] = {}
            self.error: BackendUnavailable | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            if size > self.sizes.get(tensor_name, 0) or tensor_name not in self.memory:
                try:
                    self.memory[tensor_name] = cuda.allocate(max(size, 1)), ()
                except BackendUnavailable as error:  # it cannot pass through TensorRT's own frames
                    self.error = error
                    return 0
                self.sizes[tensor_name] = size
            return int(self.memory[tensor_name][0].handle)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.memory[tensor_name] = self.memory[tensor_name][0], tuple(shape)

    return OutputAllocator()


def _shape(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else sizes[size] for size in shape)


def _padded(array: npt.NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Pad an array to a profile's shape, contiguous. Filler rows repeat the last row, because a row of zeros would be a
    sentence without word pieces; other axes are filled with zeros, which are no word pieces.
    """
    if array.shape == shape:
        return np.ascontiguousarray(array, dtype)
    padded = np.zeros(shape, dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    padded[len(array) :] = padded[len(array) - 1]
    return padded
