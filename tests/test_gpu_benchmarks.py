"""The GPU benchmarks without a device: options, times that they ship, and treatment of the peers."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_gather, bench_gpu, gpu_requests, gpu_timing
from benchmarks.conv_layers import Layers
from benchmarks.gpu_peers import TUNED_VIDEOS, arithmetic, peers
from benchmarks.gpu_timing import Bench, HostClock, add_options
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.errors import InputError
from mmn_fast.geometry import proposal_plan
from mmn_fast.kernels.gpu.clock import DeviceClock, Timing
from mmn_fast.kernels.gpu.conv import block_sizes
from mmn_fast.model import build_model
from tests.gpu_clock_double import Device


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, ["tacos", "charades"], [1, 8, 48])
    return parser.parse_args(arguments)


def test_presets_and_batches_keep_their_order_and_the_largest_batch_comes_last() -> None:
    options = _options()
    assert (options.presets, options.batches, options.seconds) == (["tacos", "charades"], [1, 8, 48], 90.0)
    given = _options("--presets", "tacos", "activitynet", "--batches", "8", "1", "--seconds", "12.5")
    assert (given.presets, given.batches, given.seconds) == (["tacos", "activitynet"], [8, 1], 12.5)


@pytest.mark.parametrize("main", [bench_gpu.main, bench_gather.main], ids=["bench_gpu", "bench_gather"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "nowhere"], "argument --presets: expected charades, activitynet or tacos, got 'nowhere'"),
        (["--batches", "1", "0"], "argument --batches: expected a number of videos, at least 1, got '0'"),
        (["--batches", "two"], "argument --batches: expected a number of videos, at least 1, got 'two'"),
        (["--seconds", "0"], "argument --seconds: expected seconds above 0, got '0'"),
        (["--seconds", "soon"], "argument --seconds: expected seconds above 0, got 'soon'"),
    ],
)
def test_unknown_values_of_an_option_are_refused_in_a_sentence(
    main: Callable[[list[str]], None], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--rehearse"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(message)


def test_an_unknown_step_is_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_gpu.main(["--steps", "ground", "grind", "--rehearse"])
    expected = "argument --steps: expected ground, score, encode_text, stages, encode_video or engine, got 'grind'"
    assert capsys.readouterr().err.rstrip().endswith(expected)


@pytest.mark.slow
def test_steps_run_in_their_order_for_each_preset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def steps(_bench: Bench, _options: argparse.Namespace, preset: str) -> dict[str, Callable[[], None]]:
        def fail() -> None:
            raise RuntimeError("for a test")

        return {"score": lambda: ran.append(f"{preset} score"), "engine": lambda: ran.append(f"{preset} engine")} | {
            "stages": fail
        }

    monkeypatch.setattr(bench_gpu, "_steps", steps)
    with pytest.raises(SystemExit) as ended:
        bench_gpu.main(["--steps", "engine", "stages", "score", "--rehearse"])
    assert ran == ["charades engine", "charades score"]
    assert ended.value.code == 1
    assert capsys.readouterr().err.rstrip().endswith("bench_gpu: failed: charades, stages")


def _layers() -> Layers:
    weights, biases = [torch.zeros(7, 5, 3, 3).numpy()], [torch.zeros(7).numpy()]
    return Layers(weights, biases, proposal_plan(3, (2,), 3, 1), torch.float16, torch.device("cpu"), "tiny")


WAYS = ("crop", "gather", "fft12", "fft16", "fft24", "mixed")


@pytest.mark.parametrize("missing", [None, *WAYS])
def test_a_number_of_videos_is_shipped_only_where_every_way_was_timed(
    missing: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = tmp_path / "gather_choices.json"
    monkeypatch.setattr(bench_gather, "SHIPPED", shipped)
    times = {name: [1.0] for name in WAYS if name != missing} | {"fft": [1.0]}
    bench_gather.ship_times(_layers(), 8, times)
    printed = capsys.readouterr().out
    if missing is None:
        (kept,) = block_sizes._read(shipped).times["sm_00"].values()
        assert kept.keys() == set(WAYS)
        assert "kept" in printed
    else:
        assert not shipped.exists()
        assert printed == f"not kept: tiny, batch 8: not timed: {missing}\n"


def test_times_with_launches_in_them_are_written_but_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    bench = Bench("cpu", True, float("inf"), "a benchmark")
    monkeypatch.setattr(Bench, "write", lambda _, stage, peer, *__, **___: written.append(peer))
    ways = bench_gather._Measurement.__new__(bench_gather._Measurement)
    ways.bench, ways.layers, ways.videos, ways.maps = bench, _layers(), 2, [torch.ones(2, 2)]
    ways._exact, ways._dense_ms, ways._direct_error, ways.times = torch.ones(2, 2), 1.0, 0.0, {}
    for clock, expected in (("device", 2.0), ("device, with launches", None)):
        monkeypatch.setattr(HostClock, "times", lambda *_, clock=clock: Timing([2.0], 1, clock))
        assert ways.write("gather", lambda x: x, None) == expected
    assert written == ["gather", "gather"]


def test_times_of_an_unfinished_number_of_videos_are_not_shipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The deadline falls after the gathering kernel. Times of crop and gather alone would make auto choose gather."""
    pytest.importorskip("triton")
    monkeypatch.setattr(bench_gather, "SHIPPED", tmp_path / "gather_choices.json")
    bench, layers = Bench("cpu", True, float("inf"), "bench_gather"), bench_gather._load("tiny", True)
    monkeypatch.setattr(bench_gather._Measurement, "dense", lambda *_: None)

    class Stack:
        def __init__(self, name: str) -> None:
            self.name = name

        def release(self) -> None: ...

    def stack(ways: Any, conv: Stack, _predicted: object) -> None:
        if not bench.out_of_time(conv.name):
            ways.times[conv.name] = [1.0]
            bench.deadline = 0.0

    monkeypatch.setattr(bench_gather._Measurement, "stack", stack)
    times = bench_gather.measure(bench, layers, {name: Stack(name) for name in WAYS[1:-1]}, 2, False)
    assert times.keys() == {"crop", "gather"}
    bench_gather.ship_times(layers, 2, times)
    printed = capsys.readouterr().out
    assert "not measured: tiny, batch 2, mixed: not all of its parts were timed" in printed
    assert "not kept: tiny, batch 2: not timed: fft12, fft16, fft24, mixed" in printed
    assert not (tmp_path / "gather_choices.json").exists()


def _settings() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("settings", [{}, {"tf32": True}, {"benchmark": True}, {"tf32": True, "benchmark": True}])
def test_a_peers_settings_are_its_own(settings: dict[str, bool]) -> None:
    before = _settings()
    tf32, benchmark = settings.get("tf32", False), settings.get("benchmark", False)
    with arithmetic(**settings):
        assert _settings() == (tf32, benchmark, False, "high" if tf32 else "highest")
        assert torch.is_inference_mode_enabled()
    assert _settings() == before
    with pytest.raises(ZeroDivisionError), arithmetic(**settings):
        raise ZeroDivisionError
    assert _settings() == before


@pytest.mark.slow
def test_every_dense_peer_also_runs_at_its_best_and_sets_nothing_for_the_next_one(
    golden_model: Callable[[str], Path],
) -> None:
    model = load_model(golden_model("charades_small"))
    net = build_model(model.preset, model.text, model.state)
    bench, seen, before = Bench("cpu", True, float("inf"), "a benchmark"), dict[str, Any](), _settings()
    clips = [torch.zeros(TUNED_VIDEOS, model.preset.num_pre_clips, model.preset.input_size)]
    encode = type(net).encode_video
    for name, make in peers(net, bench, clips, compiled=False).items():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(net), "encode_video", lambda *_, name=name: seen.setdefault(name, _settings()))
            make()(0)
        assert _settings() == before
    assert type(net).encode_video is encode
    tuned = {name for name, (_, benchmark, *_) in seen.items() if benchmark}
    assert tuned == {name for name in seen if name.endswith("cudnn.benchmark")}
    assert {name.removesuffix(", cudnn.benchmark") for name in tuned} >= {"PyTorch fp32", "PyTorch TF32"}
    assert {name for name, (tf32, *_) in seen.items() if tf32} == {name for name in seen if "TF32" in name}
    large = [torch.zeros(1).expand(TUNED_VIDEOS + 1)]
    assert not any("benchmark" in name for name in peers(net, bench, large, compiled=False))


def test_a_share_of_the_floor_is_written_only_of_the_devices_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(gpu_timing, "append", lambda line, _: lines.append(dict(line)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    bench = Bench("cuda", False, float("inf"), "a benchmark", rates={"matmul_tflops": 1.0, "copy_gbps": 1.0})
    for clock in ("device", "device, with launches", "host"):
        bench.write("stage", "peer", Timing([2.0], 4, clock), 0.0, (1e9, 0.0), preset="p")
    assert [line.get("of_floor") for line in lines] == [0.5, None, None]
    assert [(line["clock"], line["calls"]) for line in lines] == [
        ("device", 4),
        ("device, with launches", 4),
        ("host", 4),
    ]


def test_the_rates_are_of_a_busy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(launch_ms=0.05)
    monkeypatch.setattr(Bench, "clock", property(lambda _: DeviceClock(device, device.now)))
    bench = Bench("cpu", True, float("inf"), "a benchmark")
    assert bench.time(lambda _: device.queue(0.004)).median_ms == pytest.approx(0.004)


@pytest.mark.slow
def test_an_engine_of_each_convolution_grounds_and_encodes_and_one_that_cannot_is_named(
    golden_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = dataclasses.replace(load_model(golden_model("charades_small")), source="charades_small")
    reference, made = gpu_requests.engines(model, "cpu")[gpu_requests.REFERENCE], list[str]()

    def backend(model: Any, settings: Settings) -> NativeGpuBackend:
        conv = settings.options["conv"]
        made.append(conv)
        if conv == "fft":
            raise InputError("backend_options: conv: for a test")
        if conv == "mixed":
            raise MemoryError("native: out of device memory\nsecond line")
        crop = dataclasses.replace(settings, options={"conv": "crop"})  # the others need the interpreter
        return NativeGpuBackend(model, crop)

    lines: list[tuple[Any, ...]] = []
    monkeypatch.setattr(gpu_requests, "NativeGpuBackend", backend)
    monkeypatch.setattr(
        Bench, "write", lambda _, stage, peer, *__, **facts: lines.append((facts["batch"], facts["conv"], stage, peer))
    )
    bench = Bench("cpu", True, float("inf"), "a benchmark")
    gpu_requests.bench_engines(bench, model, reference, [1, 2], gpu_requests.CONVS)
    assert lines == [
        (batch, conv, stage, f"mmn_fast fp16, conv {conv}")
        for batch in (1, 2)
        for conv in ("crop", "gather", "auto")
        for stage in ("ground", "encode_video")
    ]
    assert [made.count(conv) for conv in ("crop", "gather", "auto")] == [1, 1, 1]
    printed = capsys.readouterr().out
    assert "not measured: charades_small, batch 1, engine, fft: backend_options: conv: for a test\n" in printed
    assert "not measured: charades_small, batch 2, engine, mixed: native: out of device memory\n" in printed


@pytest.mark.slow
def test_requests_are_timed_by_the_host_and_stages_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: dict[str, set[str]] = {}
    monkeypatch.setattr(
        Bench, "write", lambda _, stage, __, timing, *___, **____: clocks.setdefault(stage, set()).add(timing.clock)
    )
    bench_gpu.main(["--rehearse", "--steps", "ground", "score", "encode_text", "stages"])
    host = {"ground", "cached video", "score"}
    assert {stage for stage, found in clocks.items() if found == {"host"}} == host
    assert {stage for stage, found in clocks.items() if found == {"device"}} == clocks.keys() - host
