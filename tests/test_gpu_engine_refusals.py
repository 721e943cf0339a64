"""Refusals of the GPU engine: input, devices, options, and requests beyond its memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.backends import native_gpu, registry
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.engine import Engine
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.kernels import host
from tests.golden.grounded import batch_of
from tests.gpu_engines import Models, gpu_engine


def test_bad_input_is_refused_before_the_device_sees_it(golden_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = gpu_engine(golden_model("charades_small"), "cpu")

    def never(*_: Any) -> Any:
        raise AssertionError("the device was asked")

    monkeypatch.setattr(engine._backend, "ground", never)
    width = engine.preset.input_size
    good = mmn_fast.Video(np.ones((3, width), np.float32), 3.0)
    nan = np.ones((3, width), np.float32)
    nan[1, 2] = np.nan
    for video, message in (
        (
            mmn_fast.Video(np.ones((3, width + 1)), 3.0),
            rf"batch\[1\].video.features: expected a float array \[n_src, {width}\]",
        ),
        (mmn_fast.Video(nan, 3.0), r"batch\[1\].video.features: expected finite float32 values, got nan in row 1"),
        (mmn_fast.Video(np.ones((3, width)), 0.0), r"batch\[1\].video.duration_s: expected a positive, finite number"),
    ):
        with pytest.raises(InputError, match=message):
            engine.ground([mmn_fast.Query(good, ["a"]), mmn_fast.Query(video, ["a"])])
    with pytest.raises(InputError, match="top_k: expected an integer >= 1, got 0"):
        engine.ground([mmn_fast.Query(good, ["a"])], top_k=0)


class _Cuda:
    """Stands for `torch.cuda`, with the functions that refusals ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, build: bool = True, torch_cuda: str | None = "13.0",
                 available: bool = True, count: int = 1, capability: tuple[int, int] = (9, 0)) -> None:  # fmt: skip
        monkeypatch.setattr(host, "build_info", lambda: {"cuda": build})
        monkeypatch.setattr(host, "has_cuda_device", lambda: available)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        for name, value in (("is_available", available), ("device_count", count), ("current_device", 0),
                            ("get_device_capability", capability), ("get_device_name", "Some GPU")):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)


@pytest.mark.parametrize(
    ("facts", "device", "precision", "message"),
    [
        ({}, "cuda", "int8", r"precision 'int8' is not one of its precisions on CUDA \(fp16, bf16, fp32\)"),
        ({}, "cpu", "fp16", "device 'cpu': it runs on CUDA devices only"),
        (
            {"build": False},
            "cuda",
            "auto",
            "device 'cuda': this build of mmn_fast has no CUDA kernels; install it with",
        ),
        ({"torch_cuda": None}, "cuda", "auto", "device 'cuda': PyTorch .* is built without CUDA"),
        ({"available": False}, "cuda", "auto", "device 'cuda': PyTorch .* finds no CUDA driver or no device"),
        ({}, "cuda:3", "auto", "device 'cuda:3': there are 1 CUDA devices"),
        (
            {"capability": (7, 5)},
            "cuda:0",
            "fp16",
            "device 'cuda:0': it needs compute capability 8.0, Some GPU has 7.5",
        ),
    ],
)
def test_the_gpu_backend_refuses_with_a_sentence(
    facts: dict[str, Any], device: str, precision: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Cuda(monkeypatch, **facts)
    reason = NativeGpuBackend.unavailable_reason(device, precision)
    assert reason is not None
    assert re.match(message, reason), reason


def test_native_means_the_class_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.backend_class("native", "cpu") is NativeBackend
    assert registry.backend_class("native", "cuda:1") is NativeGpuBackend
    _Cuda(monkeypatch)
    choose = partial(registry.choose, exported=False)
    assert choose("native", "auto", "auto").backend is NativeGpuBackend
    assert choose("native", "cuda", "fp16").backend is NativeGpuBackend
    _Cuda(monkeypatch, available=False)
    assert choose("native", "auto", "fp32").backend is NativeBackend
    with pytest.raises(BackendUnavailable, match="backend 'native': device 'cuda': PyTorch .* finds no CUDA driver"):
        choose("native", "cuda", "auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graphs": 1}, "backend_options: graphs: expected true or false, got 1"),
        ({"max_graph_mib": -1}, "backend_options: max_graph_mib: expected a whole number of MiB >= 0, got -1"),
        ({"max_graph_mib": 1.5}, "backend_options: max_graph_mib: expected a whole number of MiB >= 0, got 1.5"),
        ({"max_video_mib": True}, "backend_options: max_video_mib: expected a whole number of MiB >= 0, got True"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, golden_model: Models) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        gpu_engine(golden_model("charades_small"), "cpu", **options)
    with pytest.raises(InputError, match="backend 'native' has graphs, max_graph_mib, .*, got 'speed'"):
        NativeGpuBackend.check_options({"speed": 1})


@pytest.mark.slow
@pytest.mark.parametrize("in_capture", [False, True])
def test_out_of_memory_is_one_sentence_and_leaves_the_engine_usable(
    in_capture: bool, golden_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = gpu_engine(golden_model("charades_small"), "cpu", "fp16")
    batch, backend = batch_of(cases.load("charades_small")), engine._backend
    assert isinstance(backend, NativeGpuBackend)
    expected = engine.ground(batch)
    with monkeypatch.context() as broken:

        def full(*_: Any) -> Any:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
            finally:
                if in_capture:
                    raise RuntimeError("operation failed due to a previous error during capture")

        broken.setattr(backend._programs.video, "encode", full)
        message = (
            r"^native: out of device memory in the program 'ground' for 4 videos, 256 rows, 8 sentences, 16 tokens,"
            r" 8 pairs, which needs about [\d,]+ MiB:"
            r" CUDA out of memory. Tried to allocate 9 GiB.; graphs were dropped, the engine stays usable$"
        )
        with pytest.raises(MemoryError, match=message):
            engine.ground(batch)
    assert engine.ground(batch) == expected


def test_out_of_memory_while_loading_says_how_much_the_weights_need(
    golden_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(native_gpu, "VideoBranch", full)
    message = r"^native: out of device memory in the program 'load' for the weights, which needs about [\d,]+ MiB: CUDA"
    with pytest.raises(MemoryError, match=message):
        gpu_engine(golden_model("charades_small"), "cpu")


def test_warmup_refuses_sizes_that_are_none_and_does_nothing_elsewhere(golden_engine: Callable[[str], Engine]) -> None:
    engine = golden_engine("charades_small")
    engine.warmup()
    with pytest.raises(InputError, match="^videos: expected integers >= 1, got 0$"):
        engine.warmup(videos=[0])
    with pytest.raises(InputError, match="^rows: expected integers >= 1, got -1$"):
        engine.warmup(rows=[-1])
    with pytest.raises(InputError, match="^tokens: expected integers >= 1, got 2.5$"):
        engine.warmup(tokens=[2.5])  # type: ignore[list-item]
