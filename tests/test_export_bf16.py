"""Exports in bf16: their float32 stand-in rounds like bf16 products, and results are within the bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from typer.testing import CliRunner

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.backends.ort import OnnxBackend
from mmn_fast.backends.trt import TensorRTBackend
from mmn_fast.cli import app
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.evaluation.agreement import agreement_with
from mmn_fast.export import bf16
from mmn_fast.export.tritonserver_repository import RepositoryOptions, write_repository
from mmn_fast.export.verify import BOUNDS, OPERATORS, VerificationError, verify
from mmn_fast.storage.checksums import file_sha256
from tests.conftest import DemoSplit, Exports
from tests.tolerances import check_close

QUICK = "hcstvg_small"
SLOW = [name for name in (*cases.SMALL, *cases.FULL) if name != QUICK]
GOLDEN = [QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in SLOW)]


@pytest.fixture
def in_float32(exports: Exports, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a bf16 export whose graphs are replaced by float32 stand-ins, so that a CPU can run it."""

    def make(name: str) -> Path:
        source, target = exports(name, "bf16"), tmp_path / name
        manifest = read_manifest(source)
        target.mkdir()
        for file in manifest.files:
            if file.endswith(".onnx"):
                bf16.write_in_float32(source / file, target)
            else:
                (target / file).write_bytes((source / file).read_bytes())
        files = {file.name: file_sha256(file) for file in target.iterdir()}
        dataclasses.replace(manifest, precision="fp32", files=files).write(target)
        return target

    return make


def _narrow(*shape: int, seed: int) -> torch.Tensor:
    """Draw values of few bits: float32 sums of their products are exact in any order, but need more bits than bf16."""
    values = torch.randint(-200, 200, shape, generator=torch.Generator().manual_seed(seed)).float() / 64
    assert torch.equal(values, values.bfloat16().float())
    return values


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv"])
def test_the_stand_in_rounds_each_result_once_as_bf16_does(operator: str) -> None:
    if operator == "Conv":
        x, weight, bias = _narrow(2, 3, 6, 5, seed=0), _narrow(4, 3, 3, 3, seed=1), _narrow(4, seed=2)
        product = F.conv2d(x, weight, bias).bfloat16()
        added = _narrow(1, 4, 1, 1, seed=3)
    else:
        x, weight, bias = _narrow(7, 9, seed=0), _narrow(9, 5, seed=1), _narrow(5, seed=2)
        product = (x @ weight + (bias if operator == "Gemm" else 0)).bfloat16()
        added = _narrow(5, seed=3)
    expected = (product + added.bfloat16()).relu().float().numpy()
    assert not torch.equal(product.float(), F.conv2d(x, weight, bias) if operator == "Conv" else x @ weight)

    def weights(name: str, value: torch.Tensor) -> onnx.TensorProto:
        halves = value.bfloat16().view(torch.int16).numpy()
        return helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, halves.tobytes(), raw=True)

    inputs = ["narrow", "weight"] + ["bias"] * (operator != "MatMul")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
            helper.make_node(operator, inputs, ["product"]),
            helper.make_node("Constant", [], ["added"], value=weights("added", added)),
            helper.make_node("Add", ["product", "added"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["positive"]),
            helper.make_node("Cast", ["positive"], ["y"], to=TensorProto.FLOAT),
        ],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, expected.shape)],
        [weights("weight", weight), weights("bias", bias)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", bf16.OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):  # once ONNX Runtime has this kernel, drop the stand-in
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    bf16.to_float32(model)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"x": (x + 2.0**-12).numpy()})  # bf16 rounds the sum to x
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("name", GOLDEN)
def test_bf16_is_near_float64(name: str, in_float32: Callable[[str], Path]) -> None:
    engine = mmn_fast.load(in_float32(name), backend="onnx")
    videos = cases.load(name).videos
    queries = [mmn_fast.Query(mmn_fast.Video(v.features, v.duration_s), v.sentences) for v in videos]
    for maps, expected in zip(engine.score_maps(queries), cases.truths(name), strict=True):
        check_close(maps.fused, expected, "onnx_backend", "bf16", name)


@pytest.mark.parametrize(("videos", "least"), [(12, 0.98), pytest.param(150, 0.99, marks=pytest.mark.full)])
def test_bf16_agrees_with_the_reference_on_the_demo(
    videos: int, least: float, in_float32: Callable[[str], Path], demo_split: DemoSplit
) -> None:
    split, expected = demo_split(videos)
    found = agreement_with(mmn_fast.load(in_float32("demo"), backend="onnx"), expected, split)
    assert found.top1 >= least
    assert found.max_fused_difference > 10 * BOUNDS["fp32"], "as if nothing were rounded"


@pytest.mark.parametrize("name", ["demo", QUICK])
def test_graphs_are_strongly_typed_with_bf16_where_cuda_has_it(name: str, exports: Exports) -> None:
    directory = exports(name, "bf16")
    manifest = read_manifest(directory)
    assert bool(manifest.fp32_stages) == (name == QUICK), "small random models need float32"
    for graph, file in manifest.graphs.items():
        model = onnx.load(directory / file)
        onnx.checker.check_model(model, full_check=True)
        assert {node.op_type for node in model.graph.node} <= OPERATORS
        assert [(one.domain, one.version) for one in model.opset_import] == [("", bf16.OPSET)]
        narrow = bf16.bf16_values(model.graph)
        products = [node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        assert narrow.isdisjoint(products) == (graph == "score")
        assert narrow.issuperset(products) == (graph == "text" or (graph == "video" and name == "demo"))


def test_verify_says_what_it_found(exports: Exports) -> None:
    found = verify(exports("demo", "bf16"))
    assert found["bound"] == BOUNDS["bf16"]
    assert max(found["max_error"].values()) > 10 * BOUNDS["fp32"], "as if nothing were rounded"
    done = CliRunner().invoke(app, ["verify", str(exports("demo", "bf16"))])
    assert "verified as float32 operators, results rounded to bf16" in done.stdout


def test_bf16_where_cuda_has_none_is_refused(exports: Exports, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    directory.mkdir()
    source = exports("demo", "bf16")
    manifest = read_manifest(source)
    for file in manifest.files:
        (directory / file).write_bytes((source / file).read_bytes())
    model = onnx.load(directory / "video.onnx")
    place, wide = next(
        (place, node)
        for place, node in enumerate(model.graph.node)
        if node.op_type == "Cast" and node.attribute[0].i == 1
    )
    model.graph.node.insert(place, helper.make_node("Sigmoid", [wide.input[0]], ["bent"]))
    wide.input[0] = "bent"
    onnx.save(model, directory / "video.onnx")
    files = manifest.files | {"video.onnx": file_sha256(directory / "video.onnx")}
    dataclasses.replace(manifest, files=files).write(directory)
    with pytest.raises(VerificationError, match=r"^video.onnx: bf16: expected operators Add, .*, got Sigmoid$"):
        verify(directory)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_bf16_without_cuda_is_refused_with_what_to_do(device: str, exports: Exports) -> None:
    message = {
        "cpu": r"device 'cpu': ONNX Runtime multiplies bf16 on CUDA alone; export fp32 or fp16",
        "auto": r"device 'auto': this onnxruntime .* has no CUDA provider",
        "cuda": r"device 'cuda': this onnxruntime .* has no CUDA provider",
    }[device]
    for precision in ("auto", "bf16"):
        with pytest.raises(BackendUnavailable, match=message):
            mmn_fast.load(exports("demo", "bf16"), backend="onnx", device=device, precision=precision)
    assert OnnxBackend.unavailable_reason(device, "bf16") is not None
    assert "precision" not in (TensorRTBackend.unavailable_reason("cuda", "bf16") or "")


def test_triton_serves_bf16_on_gpus_alone(exports: Exports, tmp_path: Path) -> None:
    directory = exports("demo", "bf16")
    with pytest.raises(InputError, match="device: ONNX Runtime multiplies bf16 on CUDA alone, expected auto or gpu"):
        write_repository(directory, tmp_path / "cpu", RepositoryOptions(device="cpu"))
    written = write_repository(directory, tmp_path / "models")
    assert "KIND_GPU" in (written / "mmn_video" / "config.pbtxt").read_text()
