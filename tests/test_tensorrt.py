"""Plans and the backend that runs them, on doubles of TensorRT and CUDA that hold callers to the documented API."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import json
import shutil
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast.artifact import sidecar
from mmn_fast.artifact.manifest import check_files, read_manifest
from mmn_fast.artifact.sidecar import BUCKETS, Profile, Sidecar, choose_profile, profiles_for, unfit_reason
from mmn_fast.benchmarking import stages
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.export import deploy, to_tensorrt
from mmn_fast.export.to_tensorrt import BuildOptions, build_plans
from mmn_fast.export.verify import BOUNDS, VerificationError
from mmn_fast.kernels.gpu.captures import between_captures
from mmn_fast.runtime import cuda_api, tensorrt_module, tensorrt_plan
from tests.tensorrt_double import CudaError, CudaRuntime, make_tensorrt
from tests.tolerances import check_close

VERSION = "10.16.1.11"
YOUNG = "SAME_COMPUTE_CAPABILITY"  # from TensorRT 10.9 on; to_tensorrt refuses it before
RUNTIME_CLASSES = {  # of tensorrt_lean too, which cannot build
    *("DataType", "ExecutionContextAllocationStrategy", "ICudaEngine", "IExecutionContext", "ILogger"),
    *("IOutputAllocator", "Runtime", "TensorIOMode"),
}
RECORD = Path(__file__).parent / "golden" / "tensorrt_api.json"


def install(monkeypatch: pytest.MonkeyPatch, cuda: CudaRuntime, version: str = VERSION) -> Any:
    """Make a double the module that `import tensorrt` finds, and its GPU the machine's."""
    trt = make_tensorrt(cuda, version)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return trt


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    double = CudaRuntime()
    install(monkeypatch, double)
    return double


@pytest.fixture(scope="module")
def built(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with plans of the double."""
    directory = tmp_path_factory.mktemp("plans") / "exported"
    shutil.copytree(demo_export, directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch, CudaRuntime())
        build_plans(directory)
    return directory


@pytest.fixture
def exported(built: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(built, tmp_path / "exported"))


def load(directory: Path, **options: Any) -> mmn_fast.Engine:
    return mmn_fast.load(directory, backend="tensorrt", backend_options=options)


def clips(videos: int) -> np.ndarray:
    """Pre-clips of some videos, float32 [B, T, D]."""
    preset = mmn_fast.load("demo").preset
    shape = videos, preset.num_pre_clips, preset.input_size
    return np.random.default_rng(videos).standard_normal(shape).astype(np.float32)


def proposals(directory: Path) -> tuple[int, ...]:
    """P and J."""
    return tuple(map(int, read_manifest(directory).signature("score").inputs[0].shape))


# -- profiles


def test_profiles_take_every_size_up_to_the_largest_bucket(built: Path) -> None:
    manifest = read_manifest(built)
    video = profiles_for("video", manifest)
    assert [one.sizes["B"] for one in video] == list(BUCKETS["B"])
    for size in range(1, 49):
        number = choose_profile(video, {"B": size})
        assert number is not None
        assert video[number].sizes["B"] == min(bucket for bucket in BUCKETS["B"] if bucket >= size)
    assert choose_profile(video, {"B": 49}) is None
    assert choose_profile(video, {"B": 0}) is None
    text = profiles_for("text", manifest)
    limit = manifest.text.max_tokens
    for length in range(1, limit + 1):
        for sentences in (1, 2, 8, 9, 128):
            assert choose_profile(text, {"S": sentences, "L": length}) is not None
    assert choose_profile(text, {"S": 1, "L": limit + 1}) is None


@pytest.mark.parametrize("limit", [12, 16, 40, 64, 512])
def test_the_last_bucket_of_tokens_is_the_encoders_limit(limit: int) -> None:
    buckets = sidecar.token_buckets(limit)
    assert buckets[-1] == limit
    assert list(buckets) == sorted(set(buckets))


def test_text_batches_hold_every_sentence_once() -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 99, rng.integers(1, 41)) for _ in range(300)]
    seen: list[int] = []
    for rows, padded, mask in sidecar.text_batches(ids, 40):
        assert padded.shape == mask.shape
        assert len(rows) <= BUCKETS["S"][-1]
        assert padded.shape[1] in (16, 32, 40)
        for row, values, real in zip(rows, padded, mask, strict=True):
            np.testing.assert_array_equal(values[real > 0], ids[row])
            assert not values[real == 0].any()
        seen += rows
    assert sorted(seen) == list(range(300))


# -- building


@pytest.mark.parametrize("version", ["10.1.0", VERSION, "11.4.0.106"])
def test_plans_are_built_and_run_in_every_version(
    version: str, demo_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, CudaRuntime(), version)
    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    (plan,) = build_plans(directory, ["score"], BuildOptions(progress=True, workspace_mib=64))
    written = sidecar.read_sidecar(directory, "score")
    assert plan.read_bytes().startswith(b"plan of the double"), "a header before the plan"
    assert (written.tensorrt, written.gpu, written.compute_capability) == (version, "Double 9000", (9, 0))
    assert written.onnx_sha256 == read_manifest(directory).files["score.onnx"]
    assert written.profiles == tuple(Profile((("S", *bounds),)) for bounds in ((1, 1), (2, 8), (9, 32), (33, 128)))
    sidecar.check_sidecar(directory, written, "score", read_manifest(directory))
    assert not list(directory.glob(".*")), "partial files are left"


def content(plan: Path) -> dict[str, Any]:
    import pickle

    from tests.tensorrt_double import PREFIX

    found: dict[str, Any] = pickle.loads(plan.read_bytes()[len(PREFIX) :])
    return found


def test_options_reach_the_builder(cuda: CudaRuntime, exported: Path) -> None:
    (plan,) = build_plans(exported, ["score"])
    assert content(plan)["flags"] == [], "TF32 is off by default: 11 bits are outside fp32's bound"
    assert content(plan)["hardware"] == "NONE"
    options = BuildOptions(True, "ampere-plus", tf32=True, optimization_level=5, workspace_mib=3)
    (plan,) = build_plans(exported, ["score"], options)
    assert content(plan)["flags"] == ["TF32", "VERSION_COMPATIBLE"]
    assert content(plan)["hardware"] == "AMPERE_PLUS"
    assert content(plan)["level"] == 5
    assert content(plan)["pools"] == {"WORKSPACE": 3 * 2**20}
    assert sidecar.read_sidecar(exported, "score").tf32


def test_the_timing_cache_is_kept_and_one_of_another_gpu_refused(cuda: CudaRuntime, exported: Path) -> None:
    cache = exported / to_tensorrt.TIMING_CACHE
    assert cache.read_bytes() == b"timings Double 9000 10.16.1.11"
    build_plans(exported, ["score"])
    before = {file.name: file.read_bytes() for file in exported.glob("*.plan*")}
    cache.write_bytes(b"timings of another")
    with pytest.raises(InputError, match="timing_cache: .*another GPU or by another TensorRT"):
        build_plans(exported, ["score"])
    assert {file.name: file.read_bytes() for file in exported.glob("*.plan*")} == before


def test_a_full_disk_is_one_sentence_and_changes_nothing(
    cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    before = contents(exported)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match="tensorrt: .*exported: No space left on device"):
        build_plans(exported, ["score"])
    assert contents(exported) == before


def test_a_build_that_fails_changes_nothing(cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = sys.modules["tensorrt"]
    parse = trt.OnnxParser.parse_from_file

    def refuse_text(self: Any, model: str) -> bool:
        parse(self, model)
        self._errors = [trt.ParserError("no converter for Foo")]
        return not model.endswith("text.onnx")

    monkeypatch.setattr(trt.OnnxParser, "parse_from_file", refuse_text)
    before = {file.name: file.read_bytes() for file in exported.iterdir()}
    with pytest.raises(InputError, match="text.onnx: TensorRT 10.16.1.11 does not read the graph .node_0: no conv"):
        build_plans(exported, options=BuildOptions(version_compatible=True))
    assert {file.name: file.read_bytes() for file in exported.iterdir()} == before


def test_a_graph_that_does_not_fit_its_profiles_is_refused_with_tensorrts_words(
    cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profile, "shapes", lambda self, spec: ((1, 2), (1, 2), (1, 2)))
    with pytest.raises(InputError, match="builds no plan .video_contrastive"):
        build_plans(exported, ["score"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hardware": "any"}, "hardware: expected one of same-gpu, .*, got 'any'"),
        ({"optimization_level": 6}, "optimization_level: expected an integer from 0 to 5, got 6"),
        ({"optimization_level": True}, "optimization_level: expected an integer from 0 to 5, got True"),
        ({"workspace_mib": 0}, "workspace_mib: expected an integer >= 1, got 0"),
    ],
)
def test_bad_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions(**arguments)


def test_what_cannot_be_built_is_refused(cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="graphs: expected some of video, text, score, got 'audio'"):
        build_plans(exported, ["audio"])
    with pytest.raises(InputError, match="is not an export"):
        build_plans(exported / "nowhere")
    install(monkeypatch, cuda, "10.1.0")
    with pytest.raises(InputError, match="hardware: TensorRT 10.1.0 has no 'same-compute-capability'"):
        build_plans(exported, ["score"], BuildOptions(hardware="same-compute-capability"))
    (exported / "score.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match="score.onnx is not the file that was verified"):
        build_plans(exported, ["score"])


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (None, "TensorRT is not installed .pip install mmn_fast.tensorrt."),
        ("10.0.1", "tensorrt 10.0.1 is installed, expected a version from 10.1 to 11"),
        ("12.0.0", "tensorrt 12.0.0 is installed, expected a version from 10.1 to 11"),
    ],
)
def test_a_missing_or_old_tensorrt_is_named(
    installed: str | None, message: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = CudaRuntime()
    install(monkeypatch, cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(cuda, installed) if installed else None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(InputError, match=message):
        build_plans(exported)
    with pytest.raises(BackendUnavailable, match=f"backend 'tensorrt': {message}"):
        load(exported)


def test_missing_bindings_and_gpus_are_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, CudaRuntime(devices=0))
    with pytest.raises(BackendUnavailable, match="CUDA sees no device .no_device."):
        load(exported)
    install(monkeypatch, CudaRuntime(devices=2))
    with pytest.raises(BackendUnavailable, match="device 'cuda:2': there are 2 CUDA devices"):
        mmn_fast.load(exported, backend="tensorrt", device="cuda:2")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailable, match="pip install cuda-bindings"):
        load(exported)


# -- running


def test_the_backend_gives_the_references_scores_and_moments(cuda: CudaRuntime, built: Path) -> None:
    rng, engine, reference = (
        np.random.default_rng(0),
        load(built),
        mmn_fast.load("demo", backend="torch", precision="fp64"),
    )
    sentences = ["the red square moves left", "a circle grows", "it turns"]
    queries = [
        mmn_fast.Query(mmn_fast.Video(rng.random((rows, reference.preset.input_size)), 30.0 + rows), sentences)
        for rows in (3, 40, 200)
    ]
    for run in range(3):  # a plain run, the captured one, a replay
        for ours, theirs in zip(engine.score_maps(queries), reference.score_maps(queries), strict=True):
            for name in ("contrastive", "iou", "fused"):
                check_close(ours[name], theirs[name], "golden_maps", what=f"{name}, run {run}")
    for ours, theirs in zip(engine.ground(queries), reference.ground(queries), strict=True):
        assert [[(m.start_s, m.end_s) for m in row] for row in ours] == [
            [(m.start_s, m.end_s) for m in row] for row in theirs
        ]
    assert cuda.launches > 0
    assert engine.info()["device"] == "cuda:0 (Double 9000)"
    assert engine.info()["runtime"] == "tensorrt 10.16.1.11"


@pytest.mark.parametrize("videos", [1, 3, 8, 33, 49])
def test_batches_are_padded_to_their_profile(videos: int, cuda: CudaRuntime, built: Path) -> None:
    features = clips(videos)
    reference = mmn_fast.load(built, backend="onnx")._backend.encode_video(features)
    backend = load(built)._backend
    for _ in range(2):
        for ours, theirs in zip(backend.encode_video(features), reference, strict=True):
            check_close(ours, theirs, "golden_maps", what=f"{videos} videos")


@pytest.mark.parametrize("sentences", [1, 9, 130])
def test_sentences_of_every_length_come_back_in_their_places(sentences: int, cuda: CudaRuntime, built: Path) -> None:
    rng = np.random.default_rng(sentences)
    limit = read_manifest(built).text.max_tokens
    lengths = [1 + (7 * number) % limit for number in range(sentences)]
    ids = [rng.integers(1, 60, length) for length in lengths]
    reference = mmn_fast.load(built, backend="onnx")._backend.encode_text(ids)
    backend = load(built)._backend
    found = backend.encode_text(ids)
    for ours, theirs in zip(found, reference, strict=True):
        check_close(ours, theirs, "text_encoder", what=f"{sentences} sentences")
    video = tuple(array[0] for array in backend.encode_video(clips(1)))
    scores = mmn_fast.load(built, backend="onnx")._backend.score(video, found)
    for ours, theirs in zip(backend.score(video, found), scores, strict=True):
        check_close(ours, theirs, "moment_scores", what=f"{sentences} sentences")


def test_nothing_in_nothing_out(cuda: CudaRuntime, built: Path) -> None:
    backend, (P, J) = load(built)._backend, proposals(built)
    assert [array.shape for array in backend.encode_video(clips(0))] == [(0, P, J)] * 2
    assert [array.shape for array in backend.encode_text([])] == [(0, J)] * 2
    nothing = np.empty((0, J), np.float32)
    video = np.ones((P, J), np.float32)
    assert [array.shape for array in backend.score((video, video), (nothing, nothing))] == [(0, P)] * 2


def test_graphs_are_replayed_and_captured_again_when_memory_moves(cuda: CudaRuntime, built: Path) -> None:
    backend = load(built)._backend
    one, many = clips(1), clips(48)
    backend.encode_video(one)
    assert cuda.launches == 0, "the first run is a plain one: it allocates the outputs"
    for run in range(1, 4):
        backend.encode_video(one)
        assert cuda.launches == run
    allocations = cuda.allocations
    backend.encode_video(one)
    assert cuda.allocations == allocations, "a replay allocates"
    backend.encode_video(many)  # more scratch memory, at another address: what was captured is void
    again = backend.encode_video(one * 2)
    for ours, theirs in zip(again, mmn_fast.load(built, backend="onnx")._backend.encode_video(one * 2), strict=True):
        check_close(ours, theirs, "golden_maps")
    assert cuda.graphs == 0, "recordings are destroyed once they can be launched"


def test_without_graphs_nothing_is_captured(cuda: CudaRuntime, built: Path) -> None:
    backend = load(built, cuda_graphs=False)._backend
    for _ in range(3):
        backend.encode_video(clips(2))
    assert cuda.launches == 0


def test_device_memory_is_given_back(cuda: CudaRuntime, built: Path) -> None:
    engine = load(built)
    engine.encode_text(["a person opens the door"])
    assert cuda.memory
    assert cuda.streams
    del engine
    gc.collect()
    assert not cuda.memory
    assert not cuda.streams


def test_a_run_that_fails_says_so(cuda: CudaRuntime, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(built)._backend
    one = clips(1)
    backend.encode_video(one)
    context = type(backend._plans["video"]._slots[0].context)
    monkeypatch.setattr(context, "execute_async_v3", lambda self, stream_handle: False)
    with pytest.raises(BackendUnavailable, match="cannot be captured as a CUDA graph, load it with .*cuda_graphs"):
        backend.encode_video(one)
    with pytest.raises(BackendUnavailable, match="video.plan: TensorRT refuses to run"):
        backend.encode_video(clips(2))
    monkeypatch.undo()
    install(monkeypatch, cuda)
    monkeypatch.setattr(cuda, "cudaMalloc", lambda size: (CudaError.INVALID_VALUE, None))
    fresh = backend._plans["video"]
    with pytest.raises(BackendUnavailable, match="CUDA: cudaMalloc failed"):
        fresh.run({"pre_clips": clips(4)}, backend._stream.handle)


@pytest.mark.parametrize("allocations", [0, 1, 2, 3])
def test_runs_go_well_again_when_memory_is_free_again(
    allocations: int, cuda: CudaRuntime, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was allocated before memory ran out: input, scratch, outputs; also of a profile that ran before."""
    backend, one, many = load(built)._backend, clips(1), clips(48)
    backend.encode_video(one)
    allocate, left = cuda.cudaMalloc, [None] * allocations
    monkeypatch.setattr(
        cuda, "cudaMalloc", lambda size: (left.pop(), allocate(size))[1] if left else (CudaError.INVALID_VALUE, None)
    )
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="CUDA: cudaMalloc failed"):
            backend.encode_video(many)
    monkeypatch.undo()
    same = mmn_fast.load(built, backend="onnx")._backend
    for array in (one, many, one):
        for ours, theirs in zip(backend.encode_video(array), same.encode_video(array), strict=True):
            check_close(ours, theirs, "golden_maps")


def test_a_recording_that_cuda_voids_says_how_to_do_without(
    cuda: CudaRuntime, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, one = load(built)._backend, clips(1)
    backend.encode_video(one)
    end = cuda.cudaStreamEndCapture

    def void(stream: int) -> tuple[Any, ...]:
        if cuda.captured is not None:
            end(stream)
        return CudaError.CAPTURE_UNSUPPORTED, None

    monkeypatch.setattr(cuda, "cudaStreamEndCapture", void)
    message = "CUDA: cudaStreamEndCapture failed .*; it cannot be captured as a CUDA graph, load it with .*cuda_graphs"
    with pytest.raises(BackendUnavailable, match=message):
        backend.encode_video(one)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_capture_stands_alone_and_ends_whatever_happens(
    interrupted: bool, cuda: CudaRuntime, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, one, entered = load(built)._backend, clips(1), threading.Event()
    backend.encode_video(one)
    context = type(backend._plans["video"]._slots[0].context)
    execute = context.execute_async_v3

    def elsewhere() -> None:
        with between_captures():
            entered.set()

    other = threading.Thread(target=elsewhere, daemon=True)

    def run(self: Any, stream_handle: int) -> Any:
        assert cuda.captured is not None
        assert not gc.isenabled()
        other.start()
        assert not entered.wait(0.1)
        if interrupted:
            raise KeyboardInterrupt
        return execute(self, stream_handle)

    monkeypatch.setattr(context, "execute_async_v3", run)
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        backend.encode_video(one)
    assert entered.wait(60)
    assert gc.isenabled()
    assert cuda.captured is None
    monkeypatch.setattr(context, "execute_async_v3", execute)
    backend.encode_video(one)
    assert cuda.launches == (1 if interrupted else 2)


def test_plans_take_device_pointers_on_the_callers_stream(cuda: CudaRuntime, built: Path) -> None:
    backend = load(built)._backend
    plan, device = backend._plans["video"], backend._cuda
    stream = device.stream()
    array = clips(1)
    memory = device.allocate(array.nbytes)
    device.upload(memory.handle, array, stream.handle)
    given = plan.enqueue({"pre_clips": memory.handle}, 0, stream.handle)
    found = np.full((1, *proposals(built)), np.nan, np.float32)
    device.download(found, given["video_iou"], stream.handle)
    device.synchronize(stream.handle)
    check_close(found, backend.encode_video(array)[1], "golden_maps")


# -- verification


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.fixture
def worn(exported: Path) -> dict[str, bytes]:
    """What an export holds whose plans are an earlier build's, one of them without its sidecar."""
    (exported / "score.plan.json").unlink()
    (exported / "text.plan").write_bytes(b"an earlier plan")
    return contents(exported)


def test_plans_are_held_to_the_reference(cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = to_tensorrt.verify_plans(exported)
    assert found["top1_agreement"] == 1
    assert found["bound"] == BOUNDS["fp32"]
    assert max(found["max_error"].values()) <= found["bound"]
    spoil_runs(monkeypatch)
    before = contents(exported)
    with pytest.raises(VerificationError, match="tensorrt: .*: expected .* within 2e-05, got"):
        to_tensorrt.verify_plans(exported)
    assert contents(exported) == before


def spoil_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tensorrt_plan.Plan.run

    def slightly_off(self: Any, inputs: Any, stream: int) -> Any:
        return {name: array * np.float32(1.0001) for name, array in run(self, inputs, stream).items()}

    monkeypatch.setattr(tensorrt_plan.Plan, "run", slightly_off)


def test_plans_that_are_off_leave_the_earlier_ones(
    cuda: CudaRuntime, exported: Path, worn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_runs(monkeypatch)
    with pytest.raises(VerificationError, match="tensorrt: .*: expected .*; the new plans are not kept"):
        build_plans(exported, options=BuildOptions(version_compatible=True))
    assert contents(exported) == worn


@pytest.mark.parametrize("error", [BackendUnavailable("TensorRT refuses to run"), KeyboardInterrupt()])
def test_plans_that_could_not_be_verified_leave_the_earlier_ones(
    error: BaseException, cuda: CudaRuntime, exported: Path, worn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, inputs: Any, stream: int) -> Any:
        assert {name: (exported / name).read_bytes() for name in worn} == worn, "replaced before they are verified"
        raise error

    monkeypatch.setattr(tensorrt_plan.Plan, "run", refuse)
    with pytest.raises(type(error)):
        deploy.Deployment(True, "same-gpu", False, False, None).run(exported)
    assert contents(exported) == worn
    check_files(exported, read_manifest(exported))


@pytest.mark.parametrize("moves", range(11))
def test_plans_that_cannot_all_be_moved_leave_the_earlier_ones(
    moves: int, cuda: CudaRuntime, exported: Path, worn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six new files and five in their places."""
    staged, replace, left = exported / "staged", Path.replace, [None] * moves
    staged.mkdir()
    for graph in ("video", "text", "score"):
        for path in (sidecar.plan_path(staged, graph), sidecar.sidecar_path(staged, graph)):
            path.write_bytes(b"new")

    def stop_once(self: Path, target: Path) -> Path:
        if not left:
            monkeypatch.undo()
            raise KeyboardInterrupt
        left.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop_once)
    with pytest.raises(KeyboardInterrupt):
        to_tensorrt._move_all(staged, exported)
    shutil.rmtree(staged)
    assert contents(exported) == worn


def test_new_plans_take_the_place_of_earlier_ones(cuda: CudaRuntime, exported: Path, worn: dict[str, bytes]) -> None:
    build_plans(exported)
    assert contents(exported).keys() - worn.keys() == {"score.plan.json"}
    load(exported)


def test_the_command_builds_verifies_and_serves_plans(cuda: CudaRuntime, demo_export: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mmn_fast.cli import app

    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    options = [
        "--tensorrt",
        "--tf32",
        "--version-compatible",
        "--triton-repository",
        str(tmp_path / "models"),
        "--json",
    ]
    result = CliRunner().invoke(app, ["export", str(directory), *options])
    assert result.exit_code == 0, result.output
    written = [directory / f"{graph}.plan" for graph in ("video", "text", "score")]
    assert json.loads(result.stdout) == [*map(str, written), str(tmp_path / "models")]
    assert sidecar.read_sidecar(directory, "text").version_compatible
    assert (tmp_path / "models" / "mmn_text" / "1" / "model.plan").is_file()


def test_plans_are_measured_beside_the_graphs(cuda: CudaRuntime, exported: Path) -> None:
    options = stages.BenchOptions({"model": exported}, ["tensorrt", "onnx"])
    assert stages._choose(options, "auto") == ([("tensorrt", "fp32"), ("onnx", "fp32")], {})
    names = ["encode_video 1", "encode_text 2", "score 2"]
    calls, theirs = (stages.make_stages({"model": exported}, backend, "fp32", names) for backend in options.backends)
    for name in names:
        for ours, expected in zip(calls[name](), theirs[name](), strict=True):
            check_close(ours, expected, "golden_maps", what=name)
    (exported / "text.plan").unlink()
    chosen, unavailable = stages._choose(options, "auto")
    assert chosen == [("onnx", "fp32")]
    assert "text.plan is missing; build it with" in unavailable["tensorrt fp32"]


# -- refusals


def spoil(directory: Path, **changes: Any) -> None:
    for graph in ("video", "text", "score"):
        path = directory / f"{graph}.plan.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensorrt": "10.9.0.34"}, "built by TensorRT 10.9.0.34 and runs on no other, this is TensorRT 10.16.1.11"),
        (
            {"tensorrt": "11.4.0.106", "version_compatible": True},
            "built by TensorRT 11.4.0.106 and runs on that or a newer one, this is TensorRT 10.16.1.11",
        ),
        ({"gpu": "Other"}, r"built for Other \(compute capability 9.0\) alone, this GPU is Double 9000 \(9.0\)"),
        (
            {"hardware": "same-compute-capability", "compute_capability": [8, 0]},
            r"built for GPUs of compute capability 8.0, this GPU is Double 9000 \(9.0\)",
        ),
        ({"version_compatible": True}, "holds host code; backend_options=.'allow_host_code': True. runs it"),
        ({"fingerprint": "0" * 32}, "is not of this model: fingerprint: expected .*, got 0+; build it again with"),
        ({"onnx_sha256": "0"}, "is not of this model: onnx_sha256: expected .*, got 0; build it again with"),
        ({"precision": "fp16"}, "is not of this model: precision: expected fp32, got fp16; build"),
        ({"profiles": []}, "is not of this model: profiles differ; build it again with"),
        ({"plan_sha256": "0"}, "is not the plan that its sidecar describes: sha256 expected 0, got "),
        ({"format_version": 9}, "expected mmn_fast TensorRT plan of format_version 1, got .* of 9"),
        ({"compute_capability": "nine"}, "plan.json: compute_capability: expected a list of 2 values, got 'nine'"),
        ({"profiles": 3}, "plan.json: profiles: expected a list of 0 to 10000 values, got 3"),
        ({"profiles": [{"B": [1, "2"]}]}, r"plan.json: profiles\[0\]: 'B'\[1\]: expected an integer >= 1, got '2'"),
        ({"gpu": ""}, "plan.json: gpu: expected text of 1 to 10000 characters, got ''"),
        ({"gpus": 1}, "plan.json: unknown key 'gpus'; did you mean 'gpu'"),
        ({"tf32": 1}, "plan.json: tf32: expected true or false, got 1"),
        ({"hardware": "any"}, "plan.json: hardware: expected 'same-gpu' or .*, got 'any'"),
    ],
)
def test_plans_of_others_are_refused(changes: dict[str, Any], message: str, cuda: CudaRuntime, exported: Path) -> None:
    spoil(exported, **changes)
    with pytest.raises((InputError, BackendUnavailable), match=message):
        load(exported)


def test_missing_and_foreign_files_are_refused(cuda: CudaRuntime, exported: Path) -> None:
    (exported / "text.plan.json").unlink()
    with pytest.raises(InputError, match="text.plan.json is missing, so that nothing says what text.plan was built"):
        load(exported)
    (exported / "text.plan").unlink()
    with pytest.raises(InputError, match="text.plan is missing; build it with mmn-fast export .* --tensorrt"):
        load(exported)
    with pytest.raises(InputError, match="backend 'tensorrt' runs exports"):
        mmn_fast.load("demo", backend="tensorrt")
    with pytest.raises(BackendUnavailable, match="precision 'fp16': the plans of .* are fp32"):
        mmn_fast.load(exported, backend="tensorrt", precision="fp16")
    with pytest.raises(BackendUnavailable, match="runs on CUDA devices only"):
        mmn_fast.load(exported, backend="tensorrt", device="cpu")
    with pytest.raises(InputError, match="cuda_graphs: expected true or false, got 'no'"):
        load(exported, cuda_graphs="no")


def test_a_plan_that_tensorrt_does_not_read_is_refused(cuda: CudaRuntime, exported: Path) -> None:
    (exported / "score.plan").write_bytes(b"something else")
    spoil(exported)
    path = exported / "score.plan.json"
    import hashlib

    digest = hashlib.sha256(b"something else").hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "plan_sha256": digest}))
    with pytest.raises(BackendUnavailable, match="score.plan: TensorRT does not read the plan .serialization"):
        load(exported)


@pytest.mark.parametrize("what", ["names", "count", "shapes"])
def test_a_plan_that_is_not_its_sidecars_is_refused(
    what: str, cuda: CudaRuntime, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sys.modules["tensorrt"].ICudaEngine
    if what == "names":
        monkeypatch.setattr(engine, "get_tensor_name", lambda self, index: next(iter(self._tensors)))
    elif what == "count":
        monkeypatch.setattr(engine, "num_optimization_profiles", 1)
    else:
        monkeypatch.setattr(engine, "get_tensor_profile_shape", lambda self, name, profile_index: [(1,)] * 3)
    message = {
        "names": "inputs and outputs are not those of its graph",
        "count": "expected 7 profiles, got 1",
        "shapes": "profile 0: pre_clips: expected .*, got ",
    }[what]
    with pytest.raises(InputError, match=message):
        load(built)


def test_a_version_compatible_plan_runs_where_it_is_allowed(
    demo_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    install(monkeypatch, CudaRuntime(), "10.9.0.34")
    build_plans(directory, options=BuildOptions(version_compatible=True, hardware="ampere-plus"))
    install(monkeypatch, CudaRuntime(name="Newer", capability=(10, 0)), "11.4.0.106")
    assert load(directory, allow_host_code=True).info()["runtime"] == "tensorrt 11.4.0.106"
    install(monkeypatch, CudaRuntime(name="Older", capability=(7, 5)), "11.4.0.106")
    with pytest.raises(BackendUnavailable, match=r"compute capability 8.0 or higher, this GPU is Older \(7.5\)"):
        load(directory, allow_host_code=True)


def test_versions_are_compared_as_numbers() -> None:
    written = Sidecar("video", "", "fp32", "", "", "10.9.0.34", "A", (9, 0), True, "same-gpu", False, 3, ())
    assert unfit_reason(written, "10.16.1.11", "A", (9, 0)) is None
    assert unfit_reason(written, "10.14.1.48.post1", "A", (9, 0)) is None
    assert "10.9.0.34" in str(unfit_reason(written, "10.8.0.43", "A", (9, 0)))


# -- the documented API


def used_names() -> set[str]:
    """Every name of TensorRT and of the CUDA runtime's bindings that the doubles have, as Class.member."""
    trt = make_tensorrt(CudaRuntime(), VERSION)
    names = set()
    for class_name, found in vars(trt).items():
        if isinstance(found, type):
            members = found.__members__ if hasattr(found, "__members__") else vars(found)
            names.add(f"tensorrt.{class_name}")
            names |= {f"tensorrt.{class_name}.{name}" for name in members if not name.startswith("_")}
    names |= {f"cuda.{name}" for name in vars(CudaRuntime) if name.startswith("cuda")}
    return names


def test_every_name_the_doubles_have_is_in_both_major_versions() -> None:
    record = json.loads(RECORD.read_text())
    for name in used_names():
        expected = record["versions"][name.split(".")[0]]
        if name.endswith(YOUNG):
            expected = [version for version in expected if version != "10.1.0"]
        assert record["names"].get(name) == expected, f"{name}: see the record's versions"


def test_the_code_uses_no_name_that_the_doubles_lack() -> None:
    names = used_names()
    classes = {name.split(".")[1] for name in names if name.startswith("tensorrt.")}
    for module in (tensorrt_plan, to_tensorrt, tensorrt_module, cuda_api):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
                assert node.attr in classes | {"__version__", "__name__"}, f"{module.__name__}: trt.{node.attr}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {f"trt.{name}" for name in classes}:
                known = f"tensorrt.{ast.unparse(node.value).removeprefix('trt.')}.{node.attr}" in names
                assert known or node.attr == "__init__", f"{module.__name__}: {ast.unparse(node)}"
            if isinstance(node, ast.Constant) and str(node.value).startswith("cuda") and str(node.value)[4:5].isupper():
                assert f"cuda.{node.value}" in names, f"{module.__name__}: {node.value}"


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_lean", "cuda.bindings.runtime"])
def test_the_installed_library_has_every_name(module: str) -> None:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} is not installed ({error})")
    prefix = "cuda" if module.startswith("cuda") else "tensorrt"
    for name in used_names():
        library, *path = name.split(".")
        if library != prefix or (module == "tensorrt_lean" and path[0] not in RUNTIME_CLASSES):
            continue
        if path[-1] == YOUNG and tuple(map(int, found.__version__.split(".")[:2])) < (10, 9):
            continue
        value: Any = found
        for part in path:
            assert hasattr(value, part), f"{module} has no {'.'.join(path)}"
            value = getattr(value, part)
