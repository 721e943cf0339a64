"""Collects the nodes and weights of one ONNX graph.

Each operator is a method that adds a node and returns its output: `g.Add(x, 1.0)` for a `Graph` g. Attributes are given
by name, as in the operator's documentation: `g.Transpose(x, perm=[0, 2, 1])`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmn_fast.artifact.manifest import Signature
from mmn_fast.export.graphs import OPSET
from mmn_fast.version import __version__

_IR_VERSION = 10  # the newest that TensorRT 10.0 reads
NORM_EPS = 1e-12  # of unit norms, as in PyTorch's `normalize`
FLOAT, BFLOAT16 = TensorProto.FLOAT, TensorProto.BFLOAT16
TYPES = {"fp32": FLOAT, "fp16": TensorProto.FLOAT16, "bf16": BFLOAT16}
"""The type of the weights and products of a precision."""

# Types of outputs that differ from the first input's type.
_GIVES = {
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "Less", "Or"), TensorProto.BOOL),
    **dict.fromkeys(("ArgMax", "Shape"), TensorProto.INT64),
}


@dataclass(frozen=True)
class Value:
    """An input of a graph, a weight, or the output of a node.

    Attributes:
        name: unique name in the graph.
        dtype: a `TensorProto.DataType`.
    """

    name: str
    dtype: int


class Graph:
    """A graph in the making.

    Operands that are no `Value` become constants (`constant`): integers are int64; floats have the type of the node's
    last floating-point operand.

    Args:
        signature: names, types and axes of inputs and outputs.
        opset: version of the standard operator set.

    Attributes:
        inputs: the graph's inputs.
    """

    def __init__(self, signature: Signature, opset: int = OPSET) -> None:
        self._signature, self._opset = signature, opset
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[tuple[int, tuple[int, ...], bytes], Value] = {}
        self._shapes: list[onnx.ValueInfoProto] = []
        self._counts: Counter[str] = Counter()
        self.inputs = [Value(spec.name, _type(spec.dtype)) for spec in signature.inputs]

    def weight(self, name: str, array: npt.NDArray[Any], dtype: int = FLOAT) -> Value:
        """Store a named array, rounded to a type; values that are too large for it become infinite."""
        with np.errstate(over="ignore"):
            array = np.asarray(array, helper.tensor_dtype_to_np_dtype(dtype), order="C")
        self._weights.append(numpy_helper.from_array(array, name))
        return Value(name, dtype)

    def cast(self, x: Value, dtype: int) -> Value:
        """Convert to a type; no node if `x` has it."""
        return x if x.dtype == dtype else self._node("Cast", x, to=dtype)

    def shaped(self, x: Value, shape: Sequence[int | str]) -> Value:
        """Say a shape that does not follow from the nodes; runtimes fuse some nodes only if they know it."""
        self._shapes.append(helper.make_tensor_value_info(x.name, x.dtype, shape))
        return x

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Concatenate; no node for a single part."""
        return parts[0] if len(parts) == 1 else self._node("Concat", *parts, axis=axis)

    def split(self, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        """Cut into parts along an axis; no node for a single part."""
        if len(sizes) == 1:
            return [x]
        names = [f"{self._next('Split')}_{number}" for number in range(len(sizes))]
        self._add("Split", [x, self._operand(list(sizes), FLOAT)], names, axis=axis)
        return [Value(name, x.dtype) for name in names]

    def __getattr__(self, operator: str) -> Callable[..., Value]:
        if not operator[0].isupper():
            raise AttributeError(f"Graph has no attribute {operator!r}")
        return partial(self._node, operator)

    def _node(self, operator: str, *operands: Any, **attributes: Any) -> Value:
        given = [one for one in operands if isinstance(one, Value)]
        floats = [one.dtype for one in given if one.dtype in TYPES.values()]
        inputs = [self._operand(one, floats[-1] if floats else FLOAT) for one in operands]
        same = inputs[operator == "Where"].dtype  # the first operand of Where is a mask
        dtype = attributes["to"] if operator == "Cast" else _GIVES.get(operator, same)
        name = self._next(operator)
        self._add(operator, inputs, [name], **attributes)
        return Value(name, dtype)

    def _next(self, operator: str) -> str:
        self._counts[operator] += 1
        return f"{operator}_{self._counts[operator] - 1}"

    def _add(self, operator: str, inputs: Sequence[Value], outputs: Sequence[str], **attributes: Any) -> None:
        names = [one.name for one in inputs]
        self._nodes.append(helper.make_node(operator, names, outputs, f"node_{outputs[0]}", **attributes))

    def _operand(self, operand: Any, floats: int) -> Value:
        if isinstance(operand, Value):
            return operand
        array = np.asarray(operand)
        return self.constant(array, floats if array.dtype.kind == "f" else TensorProto.INT64)

    def constant(self, array: npt.NDArray[Any], dtype: int) -> Value:
        """Store an array without a name, rounded to a type; equal ones are stored once."""
        key = dtype, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array, dtype)
        return self._constants[key]

    def model(self, *outputs: Value) -> onnx.ModelProto:
        """Make the model that gives these outputs; they take the signature's names."""
        specs = self._signature.outputs
        renamed = {value.name: spec.name for value, spec in zip(outputs, specs, strict=True)}
        for node in self._nodes:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        inputs, results = (
            [helper.make_tensor_value_info(spec.name, _type(spec.dtype), spec.shape) for spec in side]
            for side in (self._signature.inputs, specs)
        )
        graph = helper.make_graph(self._nodes, "mmn_fast", inputs, results, self._weights, value_info=self._shapes)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=_IR_VERSION,
            producer_name="mmn_fast",
            producer_version=__version__,
        )


def _type(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def unit(g: Graph, x: Value) -> Value:
    """Normalise to unit norm over the last axis, in float32. Norms count as >= 1e-12."""
    x = g.cast(x, FLOAT)
    norm = g.Sqrt(g.ReduceSum(g.Mul(x, x), [-1], keepdims=1))
    return g.Div(x, g.Max(norm, NORM_EPS))
