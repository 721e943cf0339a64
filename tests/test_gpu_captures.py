"""Captures of graphs never overlap when engines capture from several threads. CUDA's graphs are doubles."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mmn_fast
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.engine import Engine
from mmn_fast.kernels.gpu import captures, recording
from mmn_fast.kernels.gpu.captures import capturing
from mmn_fast.kernels.gpu.recording import own_stream, record
from mmn_fast.process.once import Once
from mmn_fast.runtime.graph_runner import GraphRunner, Input
from tests import cuda_graphs_double
from tests.cuda_graphs_double import POOL, CudaGraphs
from tests.processes import in_fork

Models = Callable[[str], Path]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaGraphs]:
    monkeypatch.setattr(recording, "_handed_out", type(recording._handed_out)())
    monkeypatch.setattr(recording, "_common", Once())
    assert gc.isenabled()
    yield cuda_graphs_double.install(monkeypatch)
    assert gc.isenabled()


def _runner(number: int, monkeypatch: pytest.MonkeyPatch, limit_mib: int = 100) -> GraphRunner:
    runner = GraphRunner(torch.device("cpu"), True, limit_mib * 2**20, lambda name, shapes: name)
    cuda_graphs_double.put_on(runner, number, monkeypatch)
    return runner


def _twice(runner: GraphRunner, value: float, name: str = "twice") -> float:
    """Double a value by a graph."""
    with runner.running():
        (found,) = runner.run(name, lambda x: (x * 2 + 0,), [Input(torch.full((3,), value))], ())
    return float(found[0])


def _in_threads(*works: Callable[[], object]) -> None:
    """Run all functions at the same time, each in a thread; raise the first exception."""
    start, errors = threading.Barrier(len(works)), list[BaseException]()

    def run(work: Callable[[], object]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.slow
def test_two_engines_capture_from_two_threads_on_two_devices(
    golden_model: Models, cuda: CudaGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(golden_model("charades_small"))
    plain, *engines = (Engine(loaded, NativeGpuBackend(loaded, Settings("cpu", "fp32"))) for _ in range(3))
    for number, engine in enumerate(engines):
        cuda_graphs_double.put_on(engine._backend._runner, number, monkeypatch)  # type: ignore[attr-defined]
    rng, width = np.random.default_rng(0), plain.preset.input_size
    videos = [mmn_fast.Video(rng.standard_normal((9 + n, width)).astype(np.float32), 30.0 + n) for n in range(2)]
    batches = [
        [mmn_fast.Query(videos[0], ["a"])],
        [mmn_fast.Query(video, ["a", "b c"]) for video in videos],
    ]
    expected = [plain.ground(batch) for batch in batches]
    found: dict[int, list[Any]] = {0: [], 1: []}

    def ground(number: int) -> None:
        for batch in (*batches, *batches):  # first captures, then replays
            found[number].append(engines[number].ground(batch))

    _in_threads(lambda: ground(0), lambda: ground(1))
    assert cuda.problems == []
    assert found == {0: expected * 2, 1: expected * 2}
    assert len({(thread, device) for thread, device, *_ in cuda.captures}) == 2, "each thread on its device alone"
    per_engine = {(device, stream, pool) for _, device, stream, pool in cuda.captures}
    assert len(per_engine) == 2, "one stream and one pool per engine"
    assert {device for device, *_ in per_engine} == {0, 1}
    graphs = [engine._backend._runner._graphs.info()["graphs"] for engine in engines]  # type: ignore[attr-defined]
    assert len(cuda.captures) == sum(graphs)
    assert graphs[0] == graphs[1] >= 2


def test_two_runners_on_one_device_have_a_stream_each(cuda: CudaGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    runners = [_runner(0, monkeypatch) for _ in range(2)]
    _in_threads(*(lambda runner=runner: [_twice(runner, 3.0, str(n)) for n in range(3)] for runner in runners))
    assert cuda.problems == []
    assert len({(thread, stream) for thread, _, stream, _ in cuda.captures}) == 2
    assert len({stream for _, _, stream, _ in cuda.captures}) == 2
    assert [_twice(runner, value, "0") for runner in runners for value in (1.0, 5.0)] == [2.0, 10.0] * 2


def test_memory_is_given_back_between_captures(cuda: CudaGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without care, a runner that drops its graphs would empty all devices' caches while another runner captures."""
    capturing_one, releasing = _runner(0, monkeypatch), _runner(1, monkeypatch)
    done = threading.Event()

    def capture() -> None:
        try:
            for number in range(5):
                assert _twice(capturing_one, 1.0, str(number)) == 2.0
        finally:
            done.set()

    def release() -> None:
        while not done.wait(0.001):
            with releasing.running():
                releasing._graphs.clear()

    _in_threads(capture, release)
    assert cuda.problems == []


@pytest.mark.parametrize("at_end", [False, True])
def test_a_capture_that_fails_releases_everything(
    at_end: bool, cuda: CudaGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, calls = _runner(1, monkeypatch), list[bool]()

    def broken(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(bool(cuda.underway))
        if cuda.underway:
            assert not gc.isenabled()
            if not at_end:
                raise ValueError("for a test")
        return (x * 2,)

    cuda.fail_at_end = at_end
    with pytest.raises(RuntimeError if at_end else ValueError), runner.running():
        runner.run("broken", broken, [Input(torch.ones(3))], ())
    assert calls == [False, True]
    assert gc.isenabled()
    assert cuda.current_stream() is None
    assert cuda.current_device() == 0
    assert cuda.underway == []
    assert cuda.released == ([(1, runner._pool)] if at_end else [])
    cuda.fail_at_end = False
    _in_threads(lambda: _twice(runner, 1.0))  # another thread can capture: no lock is held
    assert _twice(runner, 4.0) == 8.0


def test_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with capturing():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
    with capturing():
        with capturing():  # in the capturing thread itself
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_child_that_is_forked_amid_a_capture_captures_and_collects() -> None:
    inside, leave = threading.Event(), threading.Event()

    def capture() -> None:
        with capturing():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    inside.wait()

    def child() -> list[bool]:
        found = [gc.isenabled()]
        with capturing():
            found.append(gc.isenabled())
        return [*found, gc.isenabled(), captures._held_off]

    try:
        assert in_fork(child, 20) == [True, False, True, False]
        assert not gc.isenabled()
    finally:
        leave.set()
        thread.join()
    assert gc.isenabled()


def test_a_capture_without_a_stream_takes_one_of_the_current_device(cuda: CudaGraphs) -> None:
    x = torch.ones(3)
    for number in (1, 0, 1):
        with cuda.device(torch.device("cpu", number)):
            recording = record(lambda: x * 3)
        x.fill_(number + 1)
        assert recording.replay().tolist() == [3.0 * (number + 1)] * 3
    (_, *one), (_, *zero), (_, *again) = cuda.captures
    assert (one[0], zero[0], again[:2]) == (1, 0, one[:2])


def test_streams_are_nobody_elses_as_long_as_there_are_any(cuda: CudaGraphs) -> None:
    device, others = torch.device("cpu", 0), torch.device("cpu", 1)
    held = [own_stream(device) for _ in range(5)]
    for _ in range(POOL - 3):
        torch.cuda.Stream(device)  # PyTorch hands out the pool's streams in turn, then starts again
    held += [own_stream(device) for _ in range(POOL - 5)]
    assert len({stream.cuda_stream for stream in held}) == POOL
    assert own_stream(others).device == others
    assert own_stream(device).cuda_stream in {stream.cuda_stream for stream in held}
    del held[7]
    free = own_stream(device)
    assert free.cuda_stream not in {stream.cuda_stream for stream in held}


@pytest.mark.gpu
def test_engines_on_devices_capture_from_two_threads(golden_model: Models) -> None:
    """Two engines capture on two devices, or on one if there is only one."""
    reason = NativeGpuBackend.unavailable_reason("cuda", "auto")
    if reason:
        pytest.skip(reason)
    loaded = load_model(golden_model("charades_small"))
    names = ["cuda:0", f"cuda:{torch.cuda.device_count() - 1}"]
    engines = [Engine(loaded, NativeGpuBackend(loaded, Settings(name, "fp16"))) for name in names]
    rng, width = np.random.default_rng(0), loaded.preset.input_size
    videos = [mmn_fast.Video(rng.standard_normal((9 + n, width)).astype(np.float32), 30.0 + n) for n in range(9)]
    batches = [[mmn_fast.Query(video, ["a", "b c"]) for video in videos[:count]] for count in (1, 2, 4, 9)]
    plain = Engine(loaded, NativeGpuBackend(loaded, Settings(names[0], "fp16", None, {"graphs": False})))
    expected = [plain.ground(batch) for batch in batches]
    found: dict[int, list[Any]] = {0: [], 1: []}

    def ground(number: int) -> None:
        for batch in (*batches, *batches):
            found[number].append(engines[number].ground(batch))

    _in_threads(lambda: ground(0), lambda: ground(1))
    assert found[0] == expected * 2
    if names[0] == names[1]:  # two GPUs may be of different kinds
        assert found[1] == expected * 2
    assert all(engine.info()["graphs"] >= len(batches) for engine in engines)
