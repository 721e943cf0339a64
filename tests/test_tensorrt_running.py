"""The backend that runs plans: results, CUDA graphs, memory. TensorRT and CUDA are doubles."""

from __future__ import annotations

import gc
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.errors import BackendUnavailable
from mmn_fast.kernels.gpu.captures import between_captures
from tests.cuda_runtime_double import CudaError, CudaRuntime
from tests.tensorrt_plans import clips, install, load, proposals
from tests.tolerances import check_close


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
        check_close(ours, theirs, "match_scores", what=f"{sentences} sentences")


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
    backend.encode_video(many)  # needs more scratch memory at another address, so earlier captures are void
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
    """Memory may run out at any allocation: input, scratch, outputs. A profile that ran before runs again too."""
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
