"""bf16 graphs where nothing multiplies bf16: the same values from float32 operators. Needs no torch.

ONNX Runtime's CPU provider moves and casts bf16, but multiplies none of it. Every bf16 number is a float32 one, and
CUDA and TensorRT add products of bf16 in float32; so an operator's bf16 result is the float32 operator's, rounded
once. A graph like that (`to_float32`) shows what the bf16 graph computes, up to the order of float32 sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmn_fast.errors import InputError

if TYPE_CHECKING:
    import onnx

# Conv takes bfloat16 from this operator set on. TensorRT 10.15 reads 9 to 24, with BF16 for each operator here
# (onnx-tensorrt's docs/operators.md).
OPSET = 22
_EXACT = frozenset(("Concat", "Constant", "Gather", "Relu", "Reshape", "Slice", "Transpose", "Unsqueeze"))
_ROUNDED = frozenset(("Add", "Cast", "Conv", "Gemm", "MatMul"))
# What may take or give bf16. ONNX Runtime's CUDA provider has no bf16 kernel of MaxPool, Pad and others that the graphs
# have in float32 (its docs/BFloat16_Support.md).
OPERATORS = _EXACT | _ROUNDED


def bf16_values(graph: onnx.GraphProto) -> set[str]:
    """The names of a graph's bf16 values.

    Raises:
        InputError: an operator that is not in `OPERATORS` takes or gives bf16.
    """
    from onnx import TensorProto

    found = {one.name for one in graph.initializer if one.data_type == TensorProto.BFLOAT16}
    for node in graph.node:
        takes = gives = not found.isdisjoint(node.input)
        if node.op_type == "Cast":
            gives = node.attribute[0].i == TensorProto.BFLOAT16
        elif node.op_type == "Constant":
            gives = node.attribute[0].t.data_type == TensorProto.BFLOAT16
        if (takes or gives) and node.op_type not in OPERATORS:
            raise InputError(f"bf16: expected operators {', '.join(sorted(OPERATORS))}, got {node.op_type}")
        if gives:
            found.update(node.output)
    return found


def to_float32(model: onnx.ModelProto) -> None:
    """Make a graph's bf16 products float32 products whose results are rounded to bf16.

    Args:
        model: a graph that neither takes nor gives bf16, with its weights; changed in place.

    Raises:
        InputError: as `bf16_values`.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    narrow, nodes = bf16_values(graph), list(graph.node)
    del graph.value_info[:], graph.node[:]
    for weight in graph.initializer:
        _widen(weight)
    for node in nodes:
        name = node.output[0]
        for attribute in node.attribute:
            if node.op_type == "Cast" and name in narrow:
                attribute.i = TensorProto.FLOAT
            _widen(attribute.t)
        if name not in narrow or node.op_type not in _ROUNDED:
            graph.node.append(node)
            continue
        wide, rounded = f"{name}/float32", f"{name}/bf16"
        node.output[0] = wide
        graph.node.extend(
            (
                node,
                helper.make_node("Cast", [wide], [rounded], to=TensorProto.BFLOAT16),
                helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT),
            )
        )


def write_in_float32(path: Path, directory: Path) -> Path:
    """`to_float32` of a file.

    Args:
        path: a bf16 graph.
        directory: where to write; the result takes twice the room of the graph's weights.

    Returns:
        The float32 graph.

    Raises:
        InputError: as `bf16_values`.
    """
    import onnx

    model = onnx.load(str(path))
    to_float32(model)
    # Whatever its size: a protobuf message ends at 2 GiB.
    onnx.save(model, str(directory / path.name), save_as_external_data=True, location=f"{path.name}.data")
    return directory / path.name


def _widen(tensor: onnx.TensorProto) -> None:
    """A tensor's bf16 values as float32, in place."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
