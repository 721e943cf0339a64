"""The GPU engine with each proposal convolution: on the twins and in Triton's interpreter, and on a device."""

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
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.engine import Engine
from mmn_fast.geometry import plan_for
from mmn_fast.kernels import gather_choices, gpu_convs
from mmn_fast.kernels.gpu_convs import make_conv, unavailable_reason
from mmn_fast.kernels.gpu_video import CropProposalConv
from mmn_fast.types import InputError
from tests.golden import cases
from tests.kernels import conv_cases
from tests.test_backends_agree import fused_in_float64
from tests.tolerances import check_close

Models = Callable[[str], Path]
CPU = torch.device("cpu")
DEVICE = conv_cases.DEVICE.type
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


def _engine(model: Path, precision: str = "fp32", **options: Any) -> Engine:
    loaded = load_model(model)
    return Engine(loaded, NativeGpuBackend(loaded, DEVICE, precision, None, options))


def _batch(name: str, videos: int) -> list[mmn_fast.Query]:
    return [mmn_fast.Query(mmn_fast.Video(v.features, v.duration_s), v.sentences) for v in cases.load(name).videos][
        :videos
    ]


# The interpreter takes seconds for the smallest maps.
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
    for maps, expected in zip(engine.score_maps(batch), fused_in_float64(name), strict=False):
        check_close(maps.fused, expected, "gpu_backend", precision, name)
    assert engine.info()["proposal_conv"] == conv


def test_what_a_convolution_keeps_is_counted_and_let_go_with_the_graphs(golden_model: Models) -> None:
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
        ({"autotune": 1}, "fp16", "autotune: expected true or false, got 1"),
        ({"conv": "fft"}, "bf16", "conv: expected auto, crop or gather in bf16, .*, got 'fft'"),
        ({"conv": "mixed"}, "bf16", "conv: expected auto, crop or gather in bf16, .*, got 'mixed'"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], precision: str, message: str, golden_model: Models
) -> None:
    with pytest.raises(InputError, match=f"^backend_options: {message}$"):
        _engine(golden_model("charades_small"), precision, **options)


def test_autotune_needs_a_device(golden_model: Models) -> None:
    loaded = load_model(golden_model("charades_small"))
    with pytest.raises(
        InputError, match="^backend_options: autotune: expected a CUDA device to measure on, got 'cpu'$"
    ):
        NativeGpuBackend(loaded, "cpu", "fp16", None, {"autotune": True})


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
def test_autotune_keeps_times_and_auto_takes_what_they_say(
    golden_model: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    engine = _engine(golden_model("charades_small"), "fp32", autotune=True)  # one video at a time
    kept = json.loads(gather_choices.cache_path().read_text())["times"]
    assert [set(one) for times in kept.values() for one in times.values()] == [{"crop", "gather", "fft"}]
    again = _engine(golden_model("charades_small"), "fp32")
    assert again.info()["proposal_conv"] == engine.info()["proposal_conv"]
    for maps, expected in zip(
        engine.score_maps(_batch("charades_small", 1)), fused_in_float64("charades_small"), strict=False
    ):
        check_close(maps.fused, expected, "gpu_backend", "fp32")


def test_each_reason_not_to_take_a_convolution_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for conv in ("auto", "crop"):
        assert unavailable_reason(conv, torch.bfloat16, 99, CPU) is None
    assert unavailable_reason("gather", torch.bfloat16, 9, cuda) is None
    assert unavailable_reason("fft", torch.float16, 16, cuda) is None
    for conv, kernel, most in (("gather", 10, 9), ("mixed", 10, 9), ("fft", 17, 16)):
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


def test_auto_is_the_crop_for_a_model_of_which_nothing_was_measured(golden_model: Models) -> None:
    assert _engine(golden_model("charades_small")).info()["proposal_conv"] == "crop"


def test_auto_takes_the_crop_until_something_was_measured_that_beats_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    case = cases.load("charades_small")
    plan, arch = plan_for(case.preset), "sm_90"
    monkeypatch.setattr(gpu_convs, "capability_of", lambda _: (9, 0))
    k, layers = plan.kernel, len(plan.layers)
    weights, biases = [np.ones((4, 4, k, k), np.float32)] * layers, [np.zeros(4, np.float32)] * layers

    def made(dtype: torch.dtype = torch.float16) -> Any:
        return make_conv("auto", weights, biases, plan, dtype, torch.device(DEVICE))

    def measured(videos: int, crop: float, gather: float, fft: float, precision: str = "fp16") -> None:
        times = {"crop": [crop], "gather": [gather] * layers, "fft": [gather * 2] + [fft] * (layers - 1)}
        gather_choices.keep(arch, gather_choices.times_key(plan, 4, videos, precision), times)

    assert isinstance(made(), CropProposalConv)
    measured(8, 9.0, 1.0, 0.5)
    assert isinstance(made(), CropProposalConv)  # nothing says what one video takes
    measured(1, 1.0, 1.0, 1.0)
    assert isinstance(made(), CropProposalConv)  # the crop is faster for one video
    measured(1, 9.0, 1.0, 2.0)
    assert made().name == "gather"  # in fp16 spectra of 4 channels are too coarse
    monkeypatch.setattr(gpu_convs, "_SPECTRAL_CHANNELS", 4)
    conv = made()
    assert conv.info()["proposal_conv"] == "mixed"
    assert conv.choices[4] == ("gather",) * layers
    assert conv.choices[48] == ("gather", *["fft"] * (layers - 1))
    measured(8, 9.0, 1.0, 2.0)
    assert made().name == "gather"
    assert isinstance(made(torch.float32), CropProposalConv)  # another precision
    monkeypatch.setattr(gpu_convs, "capability_of", lambda _: (8, 0))
    assert isinstance(made(), CropProposalConv)  # another architecture
