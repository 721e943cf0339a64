"""The graphs that `export/graphs` makes: their arithmetic in float64, their axes, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks.golden import cases
from mmn_fast.artifact.manifest import Signature, TensorSpec, signature
from mmn_fast.checkpoint import LoadedModel, load_model
from mmn_fast.export.graphs import builder
from mmn_fast.export.graphs.builder import FLOAT, TYPES, Graph
from mmn_fast.export.graphs.pre_clips import pre_clips
from mmn_fast.export.graphs.score import best_moments, score_graph
from mmn_fast.export.graphs.text import text_graph
from mmn_fast.export.graphs.video import video_graph
from mmn_fast.export.to_onnx import export
from mmn_fast.features import pre_clips as pre_clips_of
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.kernels import reference
from mmn_fast.model import MMN, build_model
from tests.tolerances import check_close

QUICK = ("charades_small", "charades_conv_small", "hcstvg_small")
SLOW = ("activitynet_small", "tacos_small", "tacos_conv_small")  # the float64 reference takes 10 to 20 s each
Arrays = Sequence[npt.NDArray[np.generic]]


def run(graph: onnx.ModelProto, *inputs: npt.NDArray[np.generic]) -> Arrays:
    """Run a graph in ONNX Runtime, after ONNX's own checks."""
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: Arrays = session.run(None, dict(zip((one.name for one in graph.graph.input), inputs, strict=True)))
    return outputs


def run_in_float64(graph: onnx.ModelProto, *inputs: npt.NDArray[np.generic]) -> Arrays:
    """Turn all float32 of a graph into float64, and run it in ONNX's NumPy reference, which has every operator."""
    for weight in graph.graph.initializer:
        if weight.data_type == FLOAT:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float64), weight.name))
    for value in (*graph.graph.input, *graph.graph.output):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = TensorProto.DOUBLE
    feed = dict(zip((one.name for one in graph.graph.input), inputs, strict=True))
    outputs: Arrays = ReferenceEvaluator(graph).run(None, feed)
    assert all(output.dtype == np.float64 for output in outputs)
    return outputs


def in_float64(model: LoadedModel) -> MMN:
    return build_model(model.preset, model.text, model.state).double()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.full) for n in SLOW)])
def test_video_graph_computes_the_reference(name: str, golden_model: Callable[[str], Path]) -> None:
    model = load_model(golden_model(name))
    p = model.preset
    inputs = np.random.default_rng(0).standard_normal((2, p.num_pre_clips, p.input_size))
    with torch.inference_mode():
        expected = in_float64(model).encode_video(torch.from_numpy(inputs))
    for ours, theirs in zip(run_in_float64(video_graph(model), inputs), expected, strict=True):
        check_close(ours, theirs, "export_graph", "fp64", name)


def test_text_graph_computes_the_reference() -> None:
    """Ids where the mask is 0 change nothing."""
    model = load_model("demo")
    lengths = torch.tensor([11, 7, 2])
    ids = np.random.default_rng(0).integers(1, model.text.vocab_size, (3, 11))
    mask = (np.arange(11) < lengths.numpy()[:, None]).astype(np.int64)
    with torch.inference_mode():
        expected = in_float64(model).encode_text(torch.from_numpy(ids), lengths)
    for ours, theirs in zip(run_in_float64(text_graph(model), ids, mask), expected, strict=True):
        check_close(ours, theirs, "export_graph", "fp64", "text")


@pytest.mark.parametrize("name", ["charades_small", "hcstvg_small"])
def test_rows_become_pre_clips_whatever_stands_past_their_end(name: str) -> None:
    preset = cases.load(name).preset
    T, D = preset.num_pre_clips, preset.input_size
    rng = np.random.default_rng(0)
    videos = [rng.standard_normal((n, D)).astype(np.float32) for n in (1, 2, T - 1, T, T + 1, 3 * T // 2, 301)]
    videos[3][1] = 0
    videos[4][2] = 3e38
    padded = np.full((len(videos), 301, D), np.nan, np.float32)
    for row, video in zip(padded, videos, strict=True):
        row[: len(video)] = video
    inputs = signature("video", preset, raw_features=True).inputs
    g = Graph(Signature(inputs, signature("video", preset).inputs))
    (given,) = run(g.model(pre_clips(g, preset, *g.inputs)), padded, np.array([len(video) for video in videos]))
    for ours, video in zip(given, videos, strict=True):
        check_close(ours, pre_clips_of(video, preset).reshape(T, D), "pre_clips", what=f"{len(video)} rows")


def test_moments_in_the_graph_are_those_of_the_reference() -> None:
    """The cases include fewer than K moments after NMS, equal scores, and IoUs of exactly the threshold."""
    preset, k = cases.load("charades_small").preset, 40
    moments = cells_to_moments(plan_for(preset).cells, 30.0, preset.num_clips)
    fused = torch.rand(6, len(moments), generator=torch.Generator().manual_seed(0))
    fused[1] = 0.5
    fused[2] = 0
    fused[3, 3:] = 0
    *_, scores, _, _, _ = (whole := signature("score", preset, top_k=k)).outputs
    g = Graph(Signature((scores, whole.inputs[-1]), whole.outputs[-3:]))
    graph = g.model(*best_moments(g, preset, *g.inputs, top_k=k))
    chosen, given, spans = run(graph, fused.numpy(), np.array([30.0], np.float32))
    expected = reference.temporal_nms(fused, torch.from_numpy(moments), preset.nms_iou, k).numpy()
    there, rows = expected >= 0, np.maximum(expected, 0)
    assert not there.all()
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_array_equal(given, np.where(there, np.take_along_axis(fused.numpy(), rows, 1), 0))
    np.testing.assert_array_equal(spans, np.where(there[..., None], moments[rows], 0))


@pytest.mark.parametrize("precision", TYPES)
def test_axes_and_types_are_the_signature_s(precision: str) -> None:
    """Every shape follows from the inputs' axes: ONNX infers for each output what the signature says."""
    model = load_model("demo")
    graphs = {
        ("video", ()): video_graph(model, precision),
        ("video", (("raw_features", True),)): video_graph(model, precision, raw_features=True),
        ("text", ()): text_graph(model, precision),
        ("score", (("top_k", 3),)): score_graph(model, 3),
    }
    for (name, options), graph in graphs.items():
        expected = signature(name, model.preset, **dict(options))
        del graph.graph.output[:]
        graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(spec.name) for spec in expected.outputs)
        inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph
        for given, specs in ((inferred.input, expected.inputs), (inferred.output, expected.outputs)):
            assert tuple(map(_spec, given)) == specs


def test_runtimes_know_the_shapes_of_the_text_graph() -> None:
    """ONNX Runtime fuses additions and norms only where it knows their shapes; one of them follows from no node."""
    model = load_model("demo")
    inferred = onnx.shape_inference.infer_shapes(text_graph(model), strict_mode=True).graph
    shapes = {one.name: _spec(one).shape for one in inferred.value_info}
    norms = [node.output[0] for node in inferred.node if node.op_type == "LayerNormalization"]
    assert [shapes[name] for name in norms[:-1]] == [("S", "L", model.text.width)] * (1 + 2 * model.text.num_layers)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    axes = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, axes)


def test_a_graph_keeps_each_constant_once_and_casts_only_what_has_another_type() -> None:
    side = (TensorSpec("x", "float32", ("B", 2)),), (TensorSpec("y", "float32", ("B", 2)),)
    g = Graph(Signature(*side))
    x = g.inputs[0]
    assert g.cast(x, FLOAT) is x
    assert g.concat([x], 1) is x
    half = g.cast(x, TYPES["fp16"])
    narrow = g.Mul(g.Add(half, 0.5), 0.5)  # one constant of fp16
    wide = g.Add(g.Add(g.cast(narrow, FLOAT), 0.5), g.weight("w", np.array([1e6, 2.0]), TYPES["fp16"]))
    with pytest.raises(AttributeError, match="Graph has no attribute 'outputs'"):
        g.outputs  # noqa: B018
    graph = g.model(wide)
    assert [one.name for one in graph.graph.initializer] == ["constant_0", "constant_1", "w"]
    assert [one.data_type for one in graph.graph.initializer] == [TYPES["fp16"], FLOAT, TYPES["fp16"]]
    assert numpy_helper.to_array(graph.graph.initializer[2]).tolist() == [np.inf, 2.0]
    assert [node.op_type for node in graph.graph.node] == ["Cast", "Add", "Mul", "Cast", "Add", "Add"]
    assert graph.graph.node[-1].output == ["y"]


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if weights stand in a file of their own, as above 2 GiB."""
    folders = [tmp_path / name for name in ("one", "two", "three", "four")]
    for folder in folders[:2]:
        export("demo", folder, precision="fp16", top_k=2, raw_features=True)
    monkeypatch.setattr("mmn_fast.export.to_onnx._EXTERNAL_DATA_BYTES", 1000)
    for folder in folders[2:]:
        export("demo", folder, what=["video"])
    for one, two in (folders[:2], folders[2:]):
        assert {file.name: file.read_bytes() for file in one.iterdir()} == {
            file.name: file.read_bytes() for file in two.iterdir()
        }
    assert (folders[2] / "video.onnx.data").exists()


def test_graphs_say_what_made_them() -> None:
    graph = score_graph(load_model("demo"))
    assert (graph.producer_name, graph.producer_version) == ("mmn_fast", builder.__version__)
