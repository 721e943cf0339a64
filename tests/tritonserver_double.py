"""A double of `triton_python_backend_utils`: the documented interface of Triton's Python backend.

ONNX Runtime runs the repository's models. Like in the server, inputs and outputs are checked against config.pbtxt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_STRING": np.object_}
MEMORY_CPU = 0


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt with the official protobuf."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def check_tensors(specs: Sequence[Any], arrays: dict[str, npt.NDArray[Any]], batch: int) -> None:
    """Check arrays against the inputs or outputs of a config; a server would refuse others."""
    from tritonclient.grpc import model_config_pb2

    for spec in specs:
        if spec.name not in arrays:
            assert getattr(spec, "optional", False), f"{spec.name} is missing"
            continue
        array = arrays[spec.name]
        assert array.dtype == KINDS[model_config_pb2.DataType.Name(spec.data_type)], spec.name
        shape = array.shape
        if batch:
            assert 1 <= shape[0] <= batch, f"{spec.name}: batch of {shape[0]}"
            shape = shape[1:]
        assert len(shape) == len(spec.dims), f"{spec.name}: {shape}, expected {spec.dims}"
        assert all(dim in (-1, size) for dim, size in zip(spec.dims, shape, strict=True)), f"{spec.name}: {shape}"
    assert set(arrays) <= {spec.name for spec in specs}, "an input or output that the config does not have"


class Tensor:
    def __init__(self, name: str, numpy_array: npt.NDArray[Any]) -> None:
        self._name, self._array = name, numpy_array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        return self._array


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._outputs, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class PreferredMemory:
    def __init__(self, memory_type: int, device_id: int = 0) -> None:
        assert memory_type == MEMORY_CPU


def get_input_tensor_by_name(request: Any, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def make_utils(repository: Path) -> Any:
    """Make the module `triton_python_backend_utils` of a server with a repository of ONNX models."""
    import onnxruntime

    utils: Any = ModuleType("triton_python_backend_utils")
    utils.TRITONSERVER_MEMORY_CPU = MEMORY_CPU
    utils.calls = []
    utils.broken = None
    sessions: dict[str, Any] = {}

    class InferenceRequest:
        def __init__(
            self,
            inputs: list[Tensor],
            model_name: str = "",
            requested_output_names: Sequence[str] = (),
            preferred_memory: PreferredMemory | None = None,
        ) -> None:
            self._inputs, self._model, self._wanted = inputs, model_name, requested_output_names

        def inputs(self) -> list[Tensor]:
            return self._inputs

        def exec(self) -> InferenceResponse:
            if self._model == utils.broken:
                return InferenceResponse([], TritonError("out of memory"))
            config = read_config(repository / self._model / "config.pbtxt")
            arrays = {tensor.name(): tensor.as_numpy() for tensor in self._inputs}
            check_tensors(config.input, arrays, config.max_batch_size)
            utils.calls.append((self._model, {name: array.shape for name, array in arrays.items()}))
            if self._model not in sessions:
                path = repository / self._model / "1" / "model.onnx"
                sessions[self._model] = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            given = sessions[self._model].run(list(self._wanted), arrays)
            found = dict(zip(self._wanted, given, strict=True))
            wanted = [spec for spec in config.output if spec.name in found]
            check_tensors(wanted, found, config.max_batch_size)
            return InferenceResponse([Tensor(name, array) for name, array in found.items()])

    for item in (
        *(Tensor, TritonError, InferenceResponse, InferenceRequest, PreferredMemory),
        *(get_input_tensor_by_name, get_output_tensor_by_name),
    ):
        setattr(utils, item.__name__, item)
    return utils
