"""Presets whose T is no multiple of N: every backend that runs here agrees with float64, with clips from a loop."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mmn_fast
from mmn_fast import _C
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import LoadedModel, load_model, model_from_state, save_model
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.features import pre_clips
from mmn_fast.model import MMN, build_model
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import Preset, get_preset
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.training.sparse import encode_video
from mmn_fast.weights.state import state_shapes
from tests.cuda_runtime_double import CudaRuntime
from tests.tensorrt_plans import install
from tests.test_training_sparse import dense
from tests.tolerances import check_close
from tests.training_task import PRESET, TEXT, WIDTH, write_task

DURATION_S = 41.3
SENTENCES = ["a dog jumps", "the dog sings", "waits"]


def odd(name: str, T: int, N: int, kernel: int, counts: tuple[int, ...], **changes: Any) -> Preset:
    sizes = {"num_pre_clips": T, "num_clips": N, "clip_pool_kernel": kernel, "pooling_counts": counts}
    return dataclasses.replace(PRESET, name=name, **sizes, **changes)


ODD = {
    preset.name: preset
    for preset in (
        odd("overlap", 100, 32, 6, (15, 8)),  # windows of 6 at a stride of 3; the last one ends at 99 of 100
        odd("most", 100, 32, 7, (15,)),  # the largest kernel: no pre-clip is left over
        odd("pairs", 33, 32, 2, (31,)),
        odd("gaps", 50, 7, 3, (3, 1)),  # windows of 3 at a stride of 7
        odd("prime", 19, 19, 1, (4, 2, 2)),
        odd("learned", 29, 9, 4, (3, 1), pooling="conv"),
    )
}


@cache
def model(name: str, root: Path) -> LoadedModel:
    """Make a model with random weights."""
    rng, preset = np.random.default_rng(sum(map(ord, name))), ODD[name]
    state = {
        key: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        for key, shape in state_shapes(preset, TEXT).items()
    }
    for key, array in state.items():
        if key.endswith(("running_var", "LayerNorm.weight", "layer_norm.weight", "layernorm.weight")):
            state[key] = np.abs(array) + np.float32(0.5)
    return model_from_state(preset, TEXT, state, load_tokenizer(root / "vocab.txt"), name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd")
    write_task(path, 1, 0)
    return path


@pytest.fixture(params=ODD)
def loaded(request: pytest.FixtureRequest, root: Path) -> LoadedModel:
    return model(request.param, root)


@pytest.fixture
def directory(loaded: LoadedModel, root: Path) -> Path:
    path = root / loaded.source
    return path if path.exists() else save_model(loaded, path)


def videos() -> list[mmn_fast.Video]:
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal((count, WIDTH)).astype(np.float32) for count in (1, 45, 203)]
    return [mmn_fast.Video(features, DURATION_S) for features in rows]


@cache
def in_float64(name: str, root: Path) -> list[np.ndarray]:
    """Compute fused scores [S, P] of every video in float64; a loop averages each clip's window of pre-clips."""
    loaded, preset = model(name, root), ODD[name]
    net = build_model(preset, TEXT, loaded.state).double()
    weight, bias = (loaded.state[f"featpool.conv.{part}"].astype(np.float64) for part in ("weight", "bias"))
    ids = [loaded.tokenizer.encode([sentence])[0] for sentence in SENTENCES]
    padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = torch.from_numpy(np.asarray(one, np.int64))
    fused = []
    with torch.inference_mode():
        text = net.encode_text(padded, torch.tensor([len(one) for one in ids]))
        for video in videos():
            rows = np.maximum(pre_clips(video.features, preset).astype(np.float64) @ weight[:, :, 0].T + bias, 0)
            stride = preset.num_pre_clips // preset.num_clips
            starts = range(0, preset.num_pre_clips - preset.clip_pool_kernel + 1, stride)
            clips = np.stack([rows[start : start + preset.clip_pool_kernel].mean(0) for start in starts], -1)
            assert clips.shape == (preset.hidden_size, preset.num_clips)
            maps = net.proposal_conv(net.feat2d(torch.from_numpy(clips)[None]))
            video_side = [
                torch.nn.functional.normalize(branch[0][:, net.cell_rows, net.cell_columns].T, dim=-1)
                for branch in maps
            ]
            scores = net.score(tuple(video_side), text)
            fused.append(fuse_scores(scores[0].numpy(), scores[1].numpy(), preset))
    return fused


def check_engine(engine: Engine, name: str, root: Path, op: str, precision: str = "fp32") -> None:
    """Compare an engine's scores and moments with float64."""
    preset, batch = ODD[name], [mmn_fast.Query(video, SENTENCES) for video in videos()]
    every_map = engine.score_maps(batch)
    for maps, expected in zip(every_map, in_float64(name, root), strict=True):
        check_close(maps.fused, expected, op, precision, name)
    for sentences, maps in zip(engine.ground(batch, top_k=3), every_map, strict=True):
        for moments, fused in zip(sentences, maps.fused, strict=True):
            i, j = maps.cells[fused.argmax()]
            assert moments[0].start_s == pytest.approx(i * DURATION_S / preset.num_clips)
            assert moments[0].end_s == pytest.approx((j + 1) * DURATION_S / preset.num_clips)


@pytest.mark.parametrize(("backend", "precision"), [("torch", "fp32"), ("torch", "fp64"), ("native", "fp32")])
def test_backends_agree_with_float64(
    backend: str, precision: str, loaded: LoadedModel, directory: Path, root: Path
) -> None:
    engine = mmn_fast.load(directory, backend=backend, precision=precision)
    op = "torch_maps" if (backend, precision) == ("torch", "fp32") else "golden_maps"
    check_engine(engine, loaded.source, root, op, precision)


@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa for isa in _C.available_cpu_isas() if isa != _C.cpu_isa()])
def test_every_other_instruction_set_agrees_with_float64(isa: str) -> None:
    """Each runs in a new process, because a process keeps its first instruction set."""
    tests = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "test_backends_agree_with_float64 and native"]
    ran = subprocess.run(tests, env=os.environ | {"MMN_FAST_CPU_ISA": isa}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert f"{len(ODD)} passed" in ran.stdout


def test_the_gpu_kernels_twins_agree_with_float64(loaded: LoadedModel, root: Path) -> None:
    engine = Engine(loaded, NativeGpuBackend(loaded, Settings("cpu", "fp32")))
    check_engine(engine, loaded.source, root, "gpu_backend")


@cache
def exported(name: str, root: Path) -> Path:
    """Export a model; verification runs batches of 1, 2, 8 and 33."""
    from mmn_fast.export.to_onnx import export

    return export(save_model(model(name, root), root / f"{name}-to-export"), root / f"{name}-onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["overlap", "learned"])
def test_exports_agree_with_float64(name: str, root: Path) -> None:
    output = exported(name, root)
    assert load_model(output).preset == ODD[name]
    check_engine(mmn_fast.load(output, backend="onnx"), name, root, "onnx_backend")


@pytest.mark.slow
def test_tensorrt_and_the_triton_server_agree_with_float64(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are doubles that compute by ONNX Runtime."""
    pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from mmn_fast.export.to_tensorrt import build_plans
    from mmn_fast.export.tritonserver_repository import write_repository
    from tests.tritonserver_double import make_utils

    name = "overlap"
    directory = Path(shutil.copytree(exported(name, root), tmp_path / "onnx"))
    install(monkeypatch, CudaRuntime())
    repository = write_repository(directory, tmp_path / "models")
    build_plans(directory)
    check_engine(mmn_fast.load(directory, backend="tensorrt"), name, root, "onnx_backend")

    utils = make_utils(repository)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    ground = repository / "mmn_ground"
    spec = importlib.util.spec_from_file_location("mmn_ground_model", ground / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    served = module.TritonPythonModel()
    served.initialize({"model_config": "{}", "model_repository": str(ground), "model_version": "1"})
    for video, expected in zip(videos(), in_float64(name, root), strict=True):
        arrays = {
            "features": np.asarray(video.features),
            "duration_s": np.asarray([DURATION_S], np.float32),
            "sentences": np.asarray([sentence.encode() for sentence in SENTENCES], np.object_),
            "top_k": np.asarray([1], np.int32),
        }
        tensors = [utils.Tensor(key, array) for key, array in arrays.items()]
        (response,) = served.execute([utils.InferenceRequest(inputs=tensors)])
        given = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        check_close(given["scores"][:, 0], expected.max(1), "onnx_backend", what=name)


@pytest.mark.parametrize("preset", ODD.values(), ids=ODD)
def test_training_computes_what_the_dense_model_does(preset: Preset) -> None:
    torch.manual_seed(0)
    net = MMN(preset, TEXT).double().train()
    inputs = torch.randn(2, preset.num_pre_clips, preset.input_size, dtype=torch.float64)
    for ours, theirs in zip(encode_video(net, inputs), dense(net, inputs), strict=True):
        check_close(ours.detach(), theirs.detach(), "training_pass", "fp64", preset.name)


@pytest.mark.parametrize("preset", ODD.values(), ids=ODD)
def test_the_presets_survive_json_and_a_converted_directory(preset: Preset, root: Path, tmp_path: Path) -> None:
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    assert load_model(save_model(model(preset.name, root), tmp_path / "model")).preset == preset


@pytest.mark.parametrize("kernel", [5, 6, 7])
def test_an_official_yaml_of_such_sizes_is_read(kernel: int, tmp_path: Path) -> None:
    tree = {
        "MODEL": {"MMN": {"NUM_CLIPS": 32, "FEATPOOL": {"KERNEL_SIZE": kernel}, "FEAT2D": {"POOLING_COUNTS": [15, 8]}}},
        "DATASETS": {"NAME": "tacos"},
        "INPUT": {"NUM_PRE_CLIPS": 100},
    }
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump(tree))
    preset = get_preset(path)
    assert (preset.num_pre_clips, preset.num_clips, preset.clip_pool_stride) == (100, 32, 3)
    pool = torch.nn.AvgPool1d(preset.clip_pool_kernel, preset.clip_pool_stride)
    assert pool(torch.zeros(1, 1, 100)).shape[-1] == 32


def test_a_preset_is_refused_exactly_where_the_official_pool_gives_another_number_of_clips() -> None:
    for T in range(1, 25):
        for N in range(1, T + 1):
            for kernel in range(1, T + 1):
                if (T - kernel) // (T // N) + 1 == N:
                    odd("sweep", T, N, kernel, ())
                else:
                    with pytest.raises(InputError, match="clip_pool_kernel: expected a kernel that leaves"):
                        odd("sweep", T, N, kernel, ())
