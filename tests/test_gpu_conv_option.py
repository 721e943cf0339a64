"""The GPU engine with each proposal convolution: on the kernels' twins, in Triton's interpreter, and on a device."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.geometry import ProposalPlan, plan_for
from mmn_fast.kernels.gpu.conv import block_sizes, choice, costs
from mmn_fast.kernels.gpu.conv.choice import layer_choices, make_conv, unavailable_reason
from mmn_fast.kernels.gpu.conv.crop import ConvSettings, CropProposalConv
from mmn_fast.presets import PRESETS
from tests.kernels import conv_cases
from tests.tolerances import check_close

Models = Callable[[str], Path]
CPU = torch.device("cpu")
DEVICE = conv_cases.DEVICE.type
pytestmark = [pytest.mark.interpreter, *([pytest.mark.gpu] if DEVICE == "cuda" else [])]


def _engine(model: Path, precision: str = "fp32", **options: Any) -> Engine:
    loaded = load_model(model)
    return Engine(loaded, NativeGpuBackend(loaded, Settings(DEVICE, precision, None, options)))


def _batch(name: str, videos: int) -> list[mmn_fast.Query]:
    return [mmn_fast.Query(mmn_fast.Video(v.features, v.duration_s), v.sentences) for v in cases.load(name).videos][
        :videos
    ]


# Few cases, because the interpreter takes seconds even for the smallest maps.
_CASES = [
    ("charades_small", "gather", "fp32"),
    ("hcstvg_small", "fft", "fp16"),
    ("hcstvg_small", "mixed", "fp16"),
]
_LARGER = [(name, conv, "fp32") for name in ("activitynet_small", "tacos_small") for conv in ("gather", "fft")]


@pytest.mark.parametrize(("name", "conv", "precision"), _CASES + (_LARGER if DEVICE == "cuda" else []))
def test_golden_cases_through_the_whole_engine(name: str, conv: str, precision: str, golden_model: Models) -> None:
    engine = _engine(golden_model(name), precision, conv=conv)
    batch = _batch(name, 1)
    for maps, expected in zip(engine.score_maps(batch), cases.truths(name), strict=False):
        check_close(maps.fused, expected, "gpu_backend", precision, name)
    assert engine.info()["proposal_conv"] == conv


def test_memory_of_a_convolution_is_counted_and_released_with_the_graphs(golden_model: Models) -> None:
    model = golden_model("charades_small")
    crop, gather = (_engine(model, "fp16", conv=conv, graphs=False)._backend for conv in ("crop", "gather"))
    assert isinstance(crop, NativeGpuBackend)
    assert isinstance(gather, NativeGpuBackend)
    conv = gather._programs.video.conv
    counted = conv.workspace_bytes(2)
    conv.prepare(2)  # type: ignore[attr-defined]
    partial = conv._prepared[2].partial  # type: ignore[attr-defined]
    held = [*conv._maps[2], *([] if partial is None else [partial])]  # type: ignore[attr-defined]
    assert counted == sum(tensor.nbytes for tensor in held)
    sizes = {"videos": 48}
    more = gather._programs._needed_mib("video", sizes) - crop._programs._needed_mib("video", sizes)
    assert more == pytest.approx(conv.workspace_bytes(48) / 2**20, abs=1)
    gather._runner._release_pool()
    assert not conv._maps  # type: ignore[attr-defined]
    assert not conv._prepared  # type: ignore[attr-defined]
    assert crop.info()["proposal_conv"] == "crop"
    load = [backend._programs._needed_mib("load", {}) for backend in (crop, gather)]
    assert load[0] == load[1] < _engine(model, "fp16", conv="fft")._backend._programs._needed_mib("load", {})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "precision", "message"),
    [
        ({"conv": "fast"}, "fp16", "conv: expected one of auto, crop, gather, fft, mixed, got 'fast'"),
        ({"conv": ["crop"]}, "fp16", r"conv: expected one of auto, crop, gather, fft, mixed, got \['crop'\]"),
        ({"autotune": 1}, "fp16", "autotune: expected true or false, got 1"),
        ({"conv": "fft"}, "bf16", "conv: expected auto, crop or gather in bf16, .*, got 'fft'"),
        ({"conv": "mixed"}, "bf16", "conv: expected auto, crop or gather in bf16, .*, got 'mixed'"),
    ],
)
def test_combinations_that_cannot_work_are_refused(
    options: dict[str, Any], precision: str, message: str, golden_model: Models
) -> None:
    with pytest.raises(InputError, match=f"^backend_options: {message}$"):
        _engine(golden_model("charades_small"), precision, **options)


def test_autotune_needs_a_device(golden_model: Models) -> None:
    loaded = load_model(golden_model("charades_small"))
    with pytest.raises(
        InputError, match="^backend_options: autotune: expected a CUDA device to measure on, got 'cpu'$"
    ):
        NativeGpuBackend(loaded, Settings("cpu", "fp16", None, {"autotune": True}))


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
def test_autotune_keeps_times_and_auto_follows_them(
    golden_model: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    engine = _engine(golden_model("charades_small"), "fp32", autotune=True)
    kept = json.loads(block_sizes.cache_path().read_text())["times"]
    assert [set(one) for times in kept.values() for one in times.values()] == [
        {"crop", "gather", "fft12", "fft16", "fft24"}
    ]
    again = _engine(golden_model("charades_small"), "fp32")
    assert again.info()["proposal_conv"] == engine.info()["proposal_conv"]
    for maps, expected in zip(
        engine.score_maps(_batch("charades_small", 1)), cases.truths("charades_small"), strict=False
    ):
        check_close(maps.fused, expected, "gpu_backend", "fp32")


def test_each_reason_not_to_take_a_convolution_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for conv in ("auto", "crop"):
        assert unavailable_reason(conv, torch.bfloat16, 99, CPU) is None
    assert unavailable_reason("gather", torch.bfloat16, 9, cuda) is None
    assert unavailable_reason("fft", torch.float16, 16, cuda) is None
    for conv, kernel, most in (("gather", 10, 9), ("mixed", 10, 9), ("fft", 25, 24)):
        expected = f"conv: expected auto or crop for a kernel of {kernel}, got {conv!r}, which takes at most {most}"
        assert unavailable_reason(conv, torch.float16, kernel, cuda) == expected
    from triton import knobs

    with monkeypatch.context() as compiled:
        compiled.setitem(vars(knobs.runtime), "interpret", False)
        assert unavailable_reason("gather", torch.float16, 5, CPU) == (
            "conv: expected auto or crop on device 'cpu', got 'gather'"
        )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert unavailable_reason("gather", torch.float16, 5, cuda) == (
        "conv: expected auto or crop without Triton (pip install triton), got 'gather'"
    )


def test_auto_is_the_crop_for_a_model_without_measurements(golden_model: Models) -> None:
    assert _engine(golden_model("charades_small")).info()["proposal_conv"] == "crop"


def test_auto_takes_the_crop_until_a_measured_way_beats_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    case = cases.load("charades_small")
    plan, arch = plan_for(case.preset), "sm_90"
    monkeypatch.setattr(choice, "capability_of", lambda _: (9, 0))
    k, layers = plan.kernel, len(plan.layers)
    weights, biases = [np.ones((4, 4, k, k), np.float32)] * layers, [np.zeros(4, np.float32)] * layers

    def made(dtype: torch.dtype = torch.float16) -> Any:
        return make_conv("auto", ConvSettings(weights, biases, plan, dtype, torch.device(DEVICE)))

    def measured(videos: int, crop: float, gather: float, fft: float, precision: str = "fp16") -> None:
        times = {"crop": [crop], "gather": [gather] * layers, "fft12": [gather * 2] + [fft] * (layers - 1)}
        times |= {"fft16": [99.0] * layers, "fft24": [99.0] * layers, "mixed": [gather + fft * (layers - 1)]}
        block_sizes.keep(arch, block_sizes.times_key(plan, 4, videos, precision), times)

    assert isinstance(made(), CropProposalConv)
    measured(8, 9.0, 1.0, 0.5)
    assert isinstance(made(), CropProposalConv)  # one video was not measured
    measured(1, 1.0, 1.0, 1.0)
    assert isinstance(made(), CropProposalConv)  # the crop is faster for one video
    measured(1, 9.0, 1.0, 2.0)
    assert made().name == "gather"  # spectra of 4 channels are too inexact in fp16
    monkeypatch.setattr(costs, "SPECTRAL_CHANNELS", 4)
    conv = made()
    assert conv.info()["proposal_conv"] == "mixed"
    assert conv.choices[4] == ("gather",) * layers
    assert conv.choices[48] == ("gather", *["fft12"] * (layers - 1))
    measured(8, 9.0, 1.0, 2.0)
    assert made().name == "gather"
    assert isinstance(made(torch.float32), CropProposalConv)  # another precision
    monkeypatch.setattr(choice, "capability_of", lambda _: (8, 0))
    assert isinstance(made(), CropProposalConv)  # another architecture


def test_ways_too_inexact_in_16_bits_are_not_chosen_however_fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "capability_of", lambda _: (9, 0))
    small, large = (plan_for(PRESETS[name]) for name in ("charades-sta", "tacos"))
    for plan, precision in ((small, "fp16"), (small, "fp32"), (large, "fp16"), (large, "bf16")):
        layers = [3.0] * len(plan.layers)
        times = {"crop": [99.0], "gather": layers, "fft12": layers, "fft16": [2.0 for _ in layers]}
        times |= {"fft24": [1.0 for _ in layers], "mixed": [9.0]}
        block_sizes.keep("sm_90", block_sizes.times_key(plan, 512, 1, precision), times)

    def chosen(conv: str, plan: ProposalPlan, dtype: torch.dtype, width: int = 512) -> set[str]:
        choices = layer_choices(conv, plan, [width] * (len(plan.layers) + 1), dtype, CPU, (1,))
        assert choices is not None
        return set(choices[1])

    for conv in ("auto", "mixed"):
        assert chosen(conv, small, torch.float16) == {"fft16"}
        assert chosen(conv, small, torch.float32) == {"fft24"}
        assert chosen(conv, large, torch.float16) == {"fft24"}
        assert chosen(conv, large, torch.bfloat16) == {"gather"}
    assert chosen("fft", small, torch.float16) == {"fft24"}
    assert "gather" in chosen("mixed", small, torch.float16, 48)
    assert layer_choices("gather", small, [512] * 9, torch.float16, CPU) is None
    assert layer_choices("auto", large, [512] * 9, torch.float32, CPU) is None


def test_ways_without_times_do_not_count_as_slower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If a benchmark ran out of time, predictions replace all of its times, and auto stays with the crop."""
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "capability_of", lambda _: (9, 0))
    plan = plan_for(PRESETS["tacos"])
    every: dict[str, list[float]] = {"crop": [99.0], "mixed": [9.0]}
    every |= {name: [3.0] * len(plan.layers) for name in costs.ALGORITHMS}

    def chosen(conv: str, videos: int = 1) -> set[str] | None:
        choices = layer_choices(conv, plan, [512] * (len(plan.layers) + 1), torch.float16, CPU, (videos,))
        return None if choices is None else set(choices[videos])

    for missing in every:
        times = {name: one for name, one in every.items() if name != missing}
        block_sizes.keep("sm_90", block_sizes.times_key(plan, 512, 1, "fp16"), times)
        assert chosen("auto") is None, missing
        assert chosen("fft") == chosen("mixed") == {"fft16"}, missing  # by predictions
    block_sizes.keep("sm_90", block_sizes.times_key(plan, 512, 1, "fp16"), every)
    assert chosen("auto") == chosen("mixed") == {"gather"}
    # Eight videos were not timed by all ways, so the times of one video decide.
    block_sizes.keep("sm_90", block_sizes.times_key(plan, 512, 8, "fp16"), {"crop": [1.0], "gather": [9.0] * 8})
    assert chosen("auto", 8) == {"gather"}


def test_spectral_weights_are_counted_once_for_each_size_of_tiles_that_a_layer_takes(golden_model: Models) -> None:
    choices = {1: ("gather", "fft12"), 2: ("fft16", "fft12"), 8: ("fft24", "gather")}
    assert choice.spectral_values(choices, [3, 5, 7]) == (16**2 + 24**2) * 3 * 5 + 12**2 * 5 * 7
    assert choice.spectral_values(None, [3, 5, 7]) == 0
    backend = _engine(golden_model("hcstvg_small"), "fp32", conv="fft")._backend
    assert isinstance(backend, NativeGpuBackend)
    conv = backend._programs.video.conv
    held = [
        tensor
        for stack in conv._stacks.values()
        for layer in stack._layers.values()
        for tensor in layer._packed.values()
    ]  # type: ignore[attr-defined]
    preset = cases.load("hcstvg_small").preset
    widths = [preset.hidden_size] + [preset.conv_hidden_size] * preset.conv_layers
    assert sum(tensor.numel() for tensor in held) == choice.spectral_values(conv.choices, widths)  # type: ignore[attr-defined]
