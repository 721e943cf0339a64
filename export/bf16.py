"""Rewrites bf16 graphs with float32 operators of the same values, for providers that cannot multiply bf16. No torch.

ONNX Runtime's CPU provider moves and casts bf16, but cannot multiply it. Every bf16 number is also a float32 number,
and CUDA and TensorRT add products of bf16 in float32. So an operator's bf16 result is the float32 operator's result,
rounded once. A rewritten graph (`to_float32`) computes what the bf16 graph computes, up to the order of float32 sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmn_fast.errors import InputError

if TYPE_CHECKING:
    import onnx

# Conv takes bfloat16 from operator set 22 on. TensorRT 10.15 reads sets 9 to 24, with BF16 for each operator here
# (onnx-tensorrt's docs/operators.md).
OPSET = 22
_EXACT = frozenset(("Concat", "Constant", "Gather", "Relu", "Reshape", "Slice", "Transpose", "Unsqueeze"))
_ROUNDED = frozenset(("Add", "Cast", "Conv", "Gemm", "MatMul"))
# Operators that may take or give bf16. ONNX Runtime's CUDA provider has no bf16 kernel for MaxPool, Pad and others
# (its docs/BFloat16_Support.md); the graphs have these in float32.
OPERATORS = _EXACT | _ROUNDED


def bf16_values(graph: onnx.GraphProto) -> set[str]:
    """The names of a graph's bf16 values.

    Raises:
        InputError: an operator outside `OPERATORS` takes or gives bf16.
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
    """Turn a graph's bf16 products into float32 products whose results are rounded to bf16.

    Args:
        model: a graph with its weights; its inputs and outputs are not bf16. It is changed in place.

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
    """Apply `to_float32` to a file.

    Args:
        path: a bf16 graph.
        directory: directory of the result, which takes twice the room of the graph's weights.

    Returns:
        The float32 graph.

    Raises:
        InputError: as `bf16_values`.
    """
    import onnx

    model = onnx.load(str(path))
    to_float32(model)
    # Weights of any size go to a separate file, because a protobuf message has at most 2 GiB.
    onnx.save(model, str(directory / path.name), save_as_external_data=True, location=f"{path.name}.data")
    return directory / path.name


def _widen(tensor: onnx.TensorProto) -> None:
    """Convert a tensor's bf16 values to float32, in place."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
