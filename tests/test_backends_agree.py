"""Every backend against the reference model in float64, on the golden cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import mmn_fast
from mmn_fast import _C
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.kernels import host, reference
from mmn_fast.kernels.cpu.conv import ALGORITHMS
from tests.tolerances import check_close


@pytest.mark.parametrize("isa", _C.available_cpu_isas())
@pytest.mark.parametrize(("P", "S", "J"), [(1, 1, 5), (136, 3, 256), (230, 300, 33), (7, 0, 8), (0, 2, 8)])
def test_match_scores_match_the_reference(P: int, S: int, J: int, isa: str) -> None:
    rng = np.random.default_rng(P + S)
    arrays = [rng.standard_normal((rows, J)).astype(np.float32) for rows in (P, P, S, S)]
    arrays = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in arrays]
    contrastive, iou = np.full((2, S, P), np.nan, np.float32)
    _C.match_scores(*arrays, contrastive=contrastive, iou=iou, threads=2, isa=isa)
    expected = reference.match_scores(*(torch.from_numpy(a).double() for a in arrays))
    check_close(contrastive, expected[0], "match_scores")
    check_close(iou, expected[1], "match_scores")
    if S > 1 and P > 1:
        alone = np.empty((2, 1, 1), np.float32)
        last = (np.ascontiguousarray(a[-1:]) for a in arrays)
        _C.match_scores(*last, contrastive=alone[0], iou=alone[1], threads=1, isa=isa)
        assert alone[0, 0, 0] == contrastive[-1, -1]
        assert alone[1, 0, 0] == iou[-1, -1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["charades_small", "charades_conv_small", "activitynet_small"])
def test_native_embeddings_do_not_depend_on_batch_or_threads(name: str, golden_model: Callable[[str], Path]) -> None:
    model = load_model(golden_model(name))
    p = model.preset
    inputs = np.random.default_rng(0).standard_normal((19, p.num_pre_clips, p.input_size)).astype(np.float32)
    one, two = (NativeBackend(model, Settings("cpu", "fp32", threads)) for threads in (1, 2))
    together = one.encode_video(inputs)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(together, two.encode_video(inputs), strict=True))
    for videos in (slice(0, 1), slice(5, 8), slice(18, 19)):
        alone = two.encode_video(inputs[videos])
        assert all(a.tobytes() == b[videos].tobytes() for a, b in zip(alone, together, strict=True))
    assert two.encode_video(inputs[:0])[0].shape == (0, *together[0].shape[1:])
    check_close(np.linalg.norm(together[0], axis=-1), np.ones(together[0].shape[:2]), "unit_norm")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["charades_small", "tacos_conv_small", "hcstvg_small", "demo"])
def test_auto_takes_native_for_every_model_and_passes_nothing_over(
    name: str, golden_model: Callable[[str], Path]
) -> None:
    info = mmn_fast.load("demo" if name == "demo" else golden_model(name), device="cpu").info()
    assert (info["backend"], info["precision"], info["options"]["exact"]) == ("native", "fp32", False)
    assert info["passed_over"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact": 1}, "backend_options: exact: expected true or false, got 1"),
        ({"max_packed_mib": -1}, "backend_options: max_packed_mib: expected a number of MiB >= 0, got -1"),
        ({"memory": 1}, "backend_options: backend 'native' has exact, max_packed_mib, autotune, got 'memory'"),
    ],
)
def test_native_refuses_bad_settings(options: dict, message: str, golden_model: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        mmn_fast.load(golden_model("charades_small"), backend="native", backend_options=options)


def test_native_keeps_to_its_memory_limit(golden_model: Callable[[str], Path]) -> None:
    free, none = (
        mmn_fast.load(
            golden_model("charades_small"), backend="native", backend_options={"max_packed_mib": limit}
        ).info()
        for limit in (None, 0)
    )
    assert free["packed_weights_mib"] > none["packed_weights_mib"]
    assert set(none["algorithms"]) == {"direct"}
    assert none["options"]["max_packed_mib"] == 0


@pytest.mark.slow
def test_autotune_measures_once_and_keeps_the_result(
    golden_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    load = partial(
        mmn_fast.load, golden_model("hcstvg_small"), backend="native", threads=1, backend_options={"autotune": True}
    )
    first = load().info()["algorithms"]
    (kept,) = (tmp_path / "tuning").iterdir()
    record = json.loads(kept.read_text())
    seconds = record["seconds"]
    assert [min(layer, key=layer.get) for layer in seconds] == first
    turned = [{name: 1 / taken for name, taken in layer.items()} for layer in seconds]
    kept.write_text(json.dumps({**record, "seconds": turned}))
    assert load().info()["algorithms"] == [max(layer, key=layer.get) for layer in seconds]  # from the file
    kept.write_text("{")
    load()
    assert json.loads(kept.read_text())["seconds"][0].keys() == seconds[0].keys()


def test_native_is_taken_by_name_and_info_says_how(golden_model: Callable[[str], Path]) -> None:
    info = mmn_fast.load(golden_model("charades_small"), device="cpu", backend="native").info()
    assert (info["backend"], info["precision"], info["device"]) == ("native", "fp32", "cpu")
    assert info["algorithms"]
    assert set(info["algorithms"]) <= set(ALGORITHMS)
    assert info["packed_weights_mib"] > 0
    assert info["packed_text_mib"] > 0
    assert info["threads"] == host.num_threads()


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "fp16", r"backend 'native': precision 'fp16' is not one of its precisions \(fp32, bf16\)"),
    ],
)
def test_native_refuses_what_it_cannot_do(
    device: str, precision: str, message: str, golden_model: Callable[[str], Path]
) -> None:
    with pytest.raises(BackendUnavailable, match=message):
        mmn_fast.load(golden_model("charades_small"), device=device, precision=precision, backend="native")
