"""A double of `tensorrt` that holds callers to the documented API.

A "plan" is the ONNX file with its profiles; ONNX Runtime computes it. "Device" memory is that of `CudaRuntime`. A call
that the real libraries would refuse or leave undefined is an error here. The public names of all classes are in
`tests/golden/tensorrt_api.json`, the record of the real bindings (`test_tensorrt_names.py`).
"""

from __future__ import annotations

import ctypes
import pickle
from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.cuda_runtime_double import CudaRuntime

PREFIX = b"plan of the double"


class _Enum(IntEnum):
    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Installation:
    """TensorRT of one version, with a CUDA runtime."""

    cuda: CudaRuntime
    version: str

    @property
    def strongly_typed(self) -> int:
        """The flag's number: 0 in TensorRT 11; in TensorRT 10 the number 0 was EXPLICIT_BATCH."""
        return 0 if self.version.startswith("11.") else 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self) -> None:
        self.made = True


class IOutputAllocator:
    def __init__(self) -> None:
        self.made = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


DataType = _Enum("DataType", {"FLOAT": 0, "HALF": 1, "INT64": 5})
TensorIOMode = _Enum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
BuilderFlag = _Enum("BuilderFlag", {"TF32": 7, "VERSION_COMPATIBLE": 13})
MemoryPoolType = _Enum("MemoryPoolType", {"WORKSPACE": 0})
ExecutionContextAllocationStrategy = _Enum(
    "ExecutionContextAllocationStrategy", {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2}
)


class INetworkDefinition:
    __slots__ = ("_model",)


class ParserError:
    def __init__(self, words: str) -> None:
        self._words = words

    def node_name(self) -> str:
        return "node_0"

    def desc(self) -> str:
        return self._words


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        assert logger.made
        self._network, self._errors = network, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        import onnx

        found = onnx.load(model)
        odd = [node.op_type for node in found.graph.node if node.op_type == "NonMaxSuppression"]
        self._errors = [ParserError(f"no converter for {name}") for name in odd]
        self._network._model = found
        return not odd


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("min <= opt <= max")
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, at: Installation, content: bytes) -> None:
        self._at, self._content = at, content

    def serialize(self) -> bytes:
        return self._content or f"timings {self._at.cuda.name} {self._at.version}".encode()


class IBuilderConfig:
    __slots__ = (
        "_at",
        "_cache",
        "_flags",
        "_pools",
        "_profiles",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "progress_monitor",
    )

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._flags, self._profiles, self._pools, self._cache = {BuilderFlag["TF32"]}, [], {}, None
        self.progress_monitor = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(self._at, serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        fits = cache.serialize() == ITimingCache(self._at, b"").serialize()
        self._cache = cache if fits or ignore_mismatch else None
        return self._cache is not None

    def get_timing_cache(self) -> ITimingCache:
        return self._cache


class Builder:
    _at: Installation

    def __init__(self, logger: ILogger) -> None:
        assert logger.made
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1 << self._at.strongly_typed
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._at)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        for value in network._model.graph.input:
            real = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
            for shapes in config._profiles:
                for shape in shapes[value.name]:
                    if len(shape) != len(real) or any(r not in (-1, s) for r, s in zip(real, shape, strict=True)):
                        self._logger.log(ILogger.ERROR, f"{value.name}: {shape} does not fit {real}")
                        return None
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            monitor.phase_start("Timing", "Building", 1)
            assert monitor.step_complete("Timing", 0)
            monitor.phase_finish("Timing")
            assert monitor.step_complete("Building", 1)
            monitor.phase_finish("Building")
        content = {
            "onnx": network._model.SerializeToString(),
            "profiles": config._profiles,
            "flags": sorted(flag.name for flag in config._flags),
            "hardware": config.hardware_compatibility_level.name,
            "level": config.builder_optimization_level,
            "pools": {pool.name: size for pool, size in config._pools.items()},
        }
        return PREFIX + pickle.dumps(content)


class Runtime:
    __slots__ = ("_logger", "engine_host_code_allowed")
    _at: Installation

    def __init__(self, logger: ILogger) -> None:
        assert logger.made
        self._logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        if not serialized_engine.startswith(PREFIX):
            self._logger.log(ILogger.ERROR, "serialization: magicTag does not match")
            return None
        content = pickle.loads(serialized_engine[len(PREFIX) :])
        if "VERSION_COMPATIBLE" in content["flags"] and not self.engine_host_code_allowed:
            self._logger.log(ILogger.ERROR, "host code is not allowed")
            return None
        return ICudaEngine(self._at.cuda, content)


class ICudaEngine:
    def __init__(self, cuda: CudaRuntime, content: dict[str, Any]) -> None:
        import onnx
        import onnxruntime

        self._cuda = cuda
        self._profiles = content["profiles"]
        graph = onnx.load_from_string(content["onnx"]).graph
        self._session = onnxruntime.InferenceSession(content["onnx"], providers=["CPUExecutionProvider"])
        types = {1: DataType["FLOAT"], 7: DataType["INT64"]}
        self._tensors = {
            value.name: (mode, types[value.type.tensor_type.elem_type], [d.dim_value or -1 for d in dims])
            for mode, values in ((TensorIOMode["INPUT"], graph.input), (TensorIOMode["OUTPUT"], graph.output))
            for value in values
            for dims in [value.type.tensor_type.shape.dim]
        }

    num_io_tensors = property(lambda self: len(self._tensors))
    num_optimization_profiles = property(lambda self: len(self._profiles))

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name][1]

    def get_tensor_shape(self, name: str) -> Any:
        return self._tensors[name][2]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        return list(self._profiles[profile_index][name])

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 256 * (profile_index + 1)

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy == ExecutionContextAllocationStrategy["USER_MANAGED"]
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._cuda, self._profile = engine, engine._cuda, None
        self._shapes: dict[str, Any] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._scratch = 0, 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._cuda.streams
        self._profile, self._shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self._engine._profiles[self._profile][name]
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        assert output_allocator.made
        self._allocators[name] = output_allocator
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._cuda.holds(memory, size)
        self._scratch = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        needed = self._engine.get_device_memory_size_for_profile_v2(self._profile)
        self._cuda.holds(self._scratch[0], needed)
        assert self._scratch[1] >= needed
        inputs, addresses = {}, dict(self._addresses)
        for name, (mode, dtype, _) in self._engine._tensors.items():
            if mode == TensorIOMode["INPUT"]:
                if name not in self._shapes or name not in addresses:
                    return False
                kind = np.dtype(np.float32 if dtype == DataType["FLOAT"] else np.int64)
                self._cuda.holds(addresses[name], int(np.prod(self._shapes[name])) * kind.itemsize)
                inputs[name] = self._shapes[name], kind
        names = [n for n, (mode, *_) in self._engine._tensors.items() if mode == TensorIOMode["OUTPUT"]]
        given = self._compute(inputs, addresses, names)
        places = {}
        for name, array in zip(names, given, strict=True):
            allocator = self._allocators[name]
            place = allocator.reallocate_output_async(name, 0, array.nbytes, 256, stream_handle)
            if not place:
                return False
            allocator.notify_shape(name, array.shape)
            places[name] = place

        def work() -> None:
            for name, array in zip(names, self._compute(inputs, addresses, names), strict=True):
                self._cuda.holds(places[name], array.nbytes)
                ctypes.memmove(places[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)

        self._cuda.enqueue(work, stream_handle)
        return True

    def _compute(self, inputs: Any, addresses: Any, names: list[str]) -> list[Any]:
        """Run the graph on the current contents of the addresses."""
        arrays = {}
        for name, (shape, kind) in inputs.items():
            size = int(np.prod(shape)) * kind.itemsize
            raw = ctypes.string_at(addresses[name], size)
            arrays[name] = np.frombuffer(raw, kind).reshape(shape).copy()
        return self._engine._session.run(names, arrays)


_COMMON = (
    *(ILogger, IOutputAllocator, IProgressMonitor, DataType, TensorIOMode, BuilderFlag, MemoryPoolType),
    *(ExecutionContextAllocationStrategy, INetworkDefinition, ParserError, OnnxParser, IOptimizationProfile),
    *(ITimingCache, IBuilderConfig, ICudaEngine, IExecutionContext),
)


def make_tensorrt(cuda: CudaRuntime, version: str) -> Any:
    """Make the module `tensorrt` of one version."""
    at = Installation(cuda, version)
    young = {"SAME_COMPUTE_CAPABILITY": 2} if tuple(map(int, version.split(".")[:2])) >= (10, 9) else {}
    of_version = (
        _Enum("HardwareCompatibilityLevel", {"NONE": 0, "AMPERE_PLUS": 1, **young}),
        _Enum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": at.strongly_typed}),
        type("Builder", (Builder,), {**_public(Builder), "_at": at}),
        type("Runtime", (Runtime,), {**_public(Runtime), "_at": at, "__slots__": ()}),
    )
    return SimpleNamespace(
        __name__="tensorrt", __version__=version, **{one.__name__: one for one in (*_COMMON, *of_version)}
    )


def _public(kind: type) -> dict[str, Any]:
    """A class's public names."""
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}
