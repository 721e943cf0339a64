"""The Triton model repository: the official protobuf parses its configs, a double of the server runs its models."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import mmn_fast
from mmn_fast.artifact.manifest import GRAPHS, read_manifest
from mmn_fast.artifact.sidecar import BUCKETS, plan_path, profiles_for, sidecar_path
from mmn_fast.errors import InputError
from mmn_fast.export.to_onnx import export
from mmn_fast.export.to_tensorrt import build_plans
from mmn_fast.export.tritonserver_repository import RepositoryOptions, graph_config, write_repository
from tests.cuda_runtime_double import CudaRuntime
from tests.tensorrt_plans import install
from tests.tolerances import check_close
from tests.tritonserver_double import check_tensors, make_utils, read_config

pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] has the official protobuf")
FILES = {
    *("mmn_video/config.pbtxt", "mmn_video/1/model.onnx", "mmn_text/config.pbtxt", "mmn_text/1/model.onnx"),
    *("mmn_score/config.pbtxt", "mmn_score/1/model.onnx", "mmn_ground/config.pbtxt"),
    *("mmn_ground/1/model.py", "mmn_ground/1/manifest.json", "mmn_ground/1/tokenizer.json"),
}
SENTENCES = ["the red square moves left", "", "a circle grows while the blue triangle turns and the square fades"]


@pytest.fixture(scope="module")
def repository(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(demo_export, tmp_path_factory.mktemp("triton") / "models")


@pytest.fixture
def utils(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    double = make_utils(repository)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", double)
    return double


@pytest.fixture
def model(repository: Path, utils: Any) -> Any:
    """The repository's model.py, loaded like by the server."""
    directory = repository / "mmn_ground"
    spec = importlib.util.spec_from_file_location("mmn_ground_model", directory / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.TritonPythonModel()
    found.initialize({"model_config": "{}", "model_repository": str(directory), "model_version": "1"})
    return found


def request(utils: Any, **values: Any) -> Any:
    kinds = {"features": np.float32, "duration_s": np.float32, "sentences": np.object_, "top_k": np.int32}
    arrays = {name: np.asarray(value, kinds[name]) for name, value in values.items()}
    return utils.InferenceRequest(inputs=[utils.Tensor(name, array) for name, array in arrays.items()])


def video(rows: int = 50) -> mmn_fast.Video:
    width = mmn_fast.load("demo").preset.input_size
    return mmn_fast.Video(np.random.default_rng(rows).random((rows, width), np.float32), 31.5)


def test_the_repository_has_its_files_and_no_others(repository: Path) -> None:
    assert {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()} == FILES
    assert [path.name for path in repository.parent.iterdir()] == ["models"], "partial files are left"


@pytest.mark.parametrize("graph", GRAPHS)
def test_configs_are_those_of_the_onnx_files(graph: str, repository: Path) -> None:
    from tritonclient.grpc import model_config_pb2

    config = read_config(repository / f"mmn_{graph}" / "config.pbtxt")
    assert config.name == f"mmn_{graph}"
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert config.version_policy.latest.num_versions == 1
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO
    found = onnx.load(str(repository / f"mmn_{graph}" / "1" / "model.onnx")).graph
    kinds = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT64: "TYPE_INT64"}
    for specs, values in ((config.input, found.input), (config.output, found.output)):
        assert [spec.name for spec in specs] == [value.name for value in values]
        for spec, value in zip(specs, values, strict=True):
            tensor = value.type.tensor_type
            assert model_config_pb2.DataType.Name(spec.data_type) == kinds[tensor.elem_type]
            dims = [dim.dim_value or -1 for dim in tensor.shape.dim]
            if config.max_batch_size:
                assert dims[0] == -1, "a batch needs a free first axis"
                dims = dims[1:]
            assert list(spec.dims) == dims
    batched = graph != "score"
    assert config.HasField("dynamic_batching") == batched
    assert config.max_batch_size == (BUCKETS["B" if graph == "video" else "S"][-1] if batched else 0)
    assert all(1 < size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_warm_up_runs(graph: str, repository: Path, utils: Any) -> None:
    config = read_config(repository / f"mmn_{graph}" / "config.pbtxt")
    (warm_up,) = config.model_warmup
    assert warm_up.batch_size == 1, "the server skips samples of batch size 0; 1 stands for no batches too"
    assert set(warm_up.inputs) == {spec.name for spec in config.input}
    tensors = []
    for spec in config.input:
        value = warm_up.inputs[spec.name]
        assert value.data_type == spec.data_type
        assert value.zero_data
        shape = ([warm_up.batch_size] if config.max_batch_size else []) + list(value.dims)
        kind = np.float32 if spec.name != "token_ids" and spec.name != "attention_mask" else np.int64
        tensors.append(utils.Tensor(spec.name, np.zeros(shape, kind)))
    outputs = [spec.name for spec in config.output]
    response = utils.InferenceRequest(tensors, f"mmn_{graph}", outputs).exec()
    assert not response.has_error()


def test_the_warm_up_is_no_longer_than_the_encoder_takes(demo_export: Path) -> None:
    manifest = read_manifest(demo_export)
    short = dataclasses.replace(manifest, text=dataclasses.replace(manifest.text, max_tokens=9))
    (warm_up,) = graph_config("text", short, RepositoryOptions())["model_warmup"]
    assert [one["value"]["dims"] for one in warm_up["inputs"]] == [[9], [9]]


def test_a_score_graph_with_moments_takes_a_duration(repository: Path) -> None:
    config = read_config(repository / "mmn_score" / "config.pbtxt")
    assert [list(spec.dims) for spec in config.input if spec.name == "duration_s"] == [[1]]


def test_the_config_of_ground_is_that_of_its_model(repository: Path, utils: Any, model: Any) -> None:
    config = read_config(repository / "mmn_ground" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("mmn_ground", "python", 0)
    assert [spec.name for spec in config.input if spec.optional] == ["top_k"]
    item = video()
    asked = request(utils, features=item.features, duration_s=[31.5], sentences=[s.encode() for s in SENTENCES])
    check_tensors(config.input, {tensor.name(): tensor.as_numpy() for tensor in asked.inputs()}, 0)
    (response,) = model.execute([asked])
    assert not response.has_error()
    check_tensors(config.output, {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}, 0)


@pytest.mark.parametrize("rows", [1, 50, 300])
@pytest.mark.parametrize("top_k", [1, 5, 136])
def test_the_python_model_gives_the_engines_moments(rows: int, top_k: int, utils: Any, model: Any) -> None:
    item = video(rows)
    expected = mmn_fast.load("demo", backend="torch", precision="fp64").ground(
        [mmn_fast.Query(item, SENTENCES)], top_k=top_k
    )[0]
    words = [s.encode() for s in SENTENCES]
    asked = request(utils, features=item.features, duration_s=[31.5], sentences=words, top_k=[top_k])
    (response,) = model.execute([asked])
    given = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    assert given["moments"].shape == (len(SENTENCES), top_k, 2)
    for row, moments in enumerate(expected):
        count = len(moments)
        check_close(given["scores"][row, :count], [m.score for m in moments], "golden_maps", what=f"sentence {row}")
        found = given["moments"][row, :count].tolist()
        assert found == [[m.start_s, m.end_s] for m in moments]
        assert (given["proposals"][row, :count] >= 0).all()
        assert (given["proposals"][row, count:] == -1).all()
        assert not given["scores"][row, count:].any()
        assert not given["moments"][row, count:].any()


def test_text_is_padded_to_buckets_and_cut_to_batches(utils: Any, model: Any) -> None:
    item = video()
    sentences = [f"the red square moves {'left ' * (n % 30)}" for n in range(150)]
    expected = mmn_fast.load("demo", backend="torch", precision="fp64").ground(
        [mmn_fast.Query(item, sentences)], top_k=1
    )[0]
    words = [s.encode() for s in sentences]
    asked = request(utils, features=item.features, duration_s=[31.5], sentences=words, top_k=[1])
    (response,) = model.execute([asked])
    given = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    check_close(given["scores"][:, 0], [m.score for (m,) in expected], "golden_maps")
    shapes = [shapes for name, shapes in utils.calls if name == "mmn_text"]
    assert {shape["token_ids"][1] for shape in shapes} <= set(BUCKETS["L"])
    assert len([1 for name, _ in utils.calls if name == "mmn_score"]) == 2


def test_no_sentence_gives_no_moments(utils: Any, model: Any) -> None:
    (response,) = model.execute([request(utils, features=video().features, duration_s=[3], sentences=[])])
    assert not response.has_error()
    assert {t.name(): t.as_numpy().shape for t in response.output_tensors()}["moments"] == (0, 5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration_s": [-1]}, "duration_s: expected a positive, finite number of seconds, got -1.0"),
        ({"duration_s": [1, 2]}, "duration_s: expected one value, got 2"),
        ({"top_k": [0]}, "top_k: expected an integer from 1 to 136, got 0"),
        ({"top_k": [2**31 - 1]}, "top_k: expected an integer from 1 to 136, got 2147483647"),
        ({"sentences": [b"ok", b"\xff"]}, "sentences[1]: expected UTF-8, got b'\\xff'"),
        ({"features": np.zeros((4, 3))}, "features: expected"),
        ({"features": np.full((4, 357), np.nan)}, "features: "),
    ],
)
def test_a_bad_request_fails_alone(changes: dict[str, Any], message: str, utils: Any, model: Any) -> None:
    good = {"features": video().features, "duration_s": [3.0], "sentences": [b"it turns"]}
    bad, fine = model.execute([request(utils, **good | changes), request(utils, **good)])
    assert bad.has_error()
    assert bad.error().message().startswith(message), bad.error().message()
    assert not bad.output_tensors()
    assert not fine.has_error()


def test_an_error_of_another_model_is_passed_on(utils: Any, model: Any) -> None:
    utils.broken = "mmn_text"
    asked = request(utils, features=video().features, duration_s=[3.0], sentences=[b"it turns"])
    (response,) = model.execute([asked])
    assert response.error().message() == "mmn_text: out of memory"


def test_plans_are_served_with_all_their_profiles(
    demo_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, CudaRuntime())
    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    with pytest.raises(InputError, match="video.plan is missing; build it"):
        write_repository(directory, tmp_path / "models", RepositoryOptions(plans=True))
    build_plans(directory)
    options = RepositoryOptions(plans=True, instances=2, queue_delay_us=0, warm_up=False)
    repository = write_repository(directory, tmp_path / "models", options)
    for graph in GRAPHS:
        config = read_config(repository / f"mmn_{graph}" / "config.pbtxt")
        assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
        profiles = profiles_for(graph, read_manifest(directory))
        (group,) = config.instance_group
        assert list(group.profile) == [str(number) for number in range(len(profiles))]
        assert group.count == 2
        assert config.parameters["gpu"].string_value == "Double 9000"
        plan = repository / f"mmn_{graph}" / "1" / "model.plan"
        assert plan.read_bytes() == plan_path(directory, graph).read_bytes()
        # Every batch size that the server may form has a profile.
        axis = {"video": "B", "text": "S", "score": "S"}[graph]
        for size in range(1, config.max_batch_size + 1):
            assert any(low <= size <= high for one in profiles for symbol, low, high in one.axes if symbol == axis)
        assert not config.model_warmup
    sidecar_path(directory, "text").unlink()
    with pytest.raises(InputError, match="text.plan.json is missing"):
        write_repository(directory, tmp_path / "other", RepositoryOptions(plans=True))
    assert not (tmp_path / "other").exists()


def test_a_score_graph_without_moments_is_given_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_export: Path
) -> None:
    scored = export("demo", tmp_path / "scored", what=["score"])
    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    shutil.copyfile(scored / "score.onnx", directory / "score.onnx")
    old, new = read_manifest(directory), read_manifest(scored)
    files = old.files | {"score.onnx": new.files["score.onnx"]}
    dataclasses.replace(old, top_k=None, files=files).write(directory)
    repository = write_repository(directory, tmp_path / "models")
    config = read_config(repository / "mmn_score" / "config.pbtxt")
    assert "duration_s" not in [spec.name for spec in config.input]
    utils = make_utils(repository)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("scored_model", repository / "mmn_ground" / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({})
    (response,) = model.execute([request(utils, features=video().features, duration_s=[3], sentences=[b"it turns"])])
    assert not response.has_error()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device: expected one of auto, cpu, gpu, got 'tpu'"),
        ({"plans": True, "device": "cpu"}, "device: TensorRT plans run on GPUs, got 'cpu'"),
        ({"instances": 0}, "instances: expected an integer >= 1, got 0"),
        ({"queue_delay_us": -1}, "queue_delay_us: expected an integer >= 0, got -1"),
    ],
)
def test_bad_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RepositoryOptions(**arguments)


def test_exports_that_cannot_be_served_are_refused(demo_export: Path, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="triton_repository: .* exists; name a directory that does not"):
        write_repository(demo_export, repository)
    with pytest.raises(InputError, match="is not an export"):
        write_repository(tmp_path, tmp_path / "models")
    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    manifest = read_manifest(directory)
    dataclasses.replace(manifest, raw_features=True).write(directory)
    with pytest.raises(InputError, match="video.onnx takes source rows"):
        write_repository(directory, tmp_path / "models")
    with pytest.raises(InputError, match="video.onnx takes source rows"):
        build_plans(directory)
    dataclasses.replace(manifest, graphs={"text": "text.onnx"}).write(directory)
    with pytest.raises(InputError, match="has no video graph; export the model with --what all"):
        write_repository(directory, tmp_path / "models")
    manifest.write(directory)
    (directory / "text.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match="text.onnx is not the file that was verified"):
        write_repository(directory, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_command_writes_a_repository_of_an_export(demo_export: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mmn_fast.cli import app

    output = tmp_path / "models"
    result = CliRunner().invoke(app, ["export", str(demo_export), "--triton-repository", str(output), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == [str(output)]
    for arguments, message in (
        ([], "--output: name a directory to create"),
        (["--tensorrt"], "--tensorrt: "),
        (["--tf32"], "expected --tensorrt with them"),
        (["--triton-repository", str(output)], "--triton-repository: .* exists"),
    ):
        result = CliRunner().invoke(app, ["export", str(demo_export), *arguments])
        assert isinstance(result.exception, InputError)
        assert re.search(message, str(result.exception)), result.exception


def test_a_tokenizer_that_is_not_the_exports_is_refused(repository: Path, utils: Any, model: Any) -> None:
    path = repository / "mmn_ground" / "1" / "tokenizer.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"person"', b'"pershn"') if b'"person"' in whole else whole[:-1])
    try:
        with pytest.raises(InputError, match=r"tokenizer\.json is not the file that was verified"):
            type(model)().initialize({})
    finally:
        path.write_bytes(whole)
