"""Exports in fp16: within their bound of the reference, with stages in float32 if fp16 alone exceeds the bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.artifact.manifest import Manifest, read_manifest
from mmn_fast.artifact.stages import attempts, stages
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.cli import app
from mmn_fast.export import to_onnx
from mmn_fast.export.to_onnx import export
from mmn_fast.export.verify import BATCH_SIZES, BOUNDS, OPERATORS, VerificationError, verify
from mmn_fast.presets import PRESETS
from tests.conftest import Exports
from tests.tolerances import check_close

pytestmark = pytest.mark.slow
QUICK = ("charades_small", "charades_conv_small", "hcstvg_small")
SLOW = [name for name in (*cases.SMALL, *cases.FULL) if name not in QUICK]
GOLDEN = [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in SLOW)]


@pytest.mark.parametrize("name", GOLDEN)
def test_fp16_is_near_float64_in_any_batch(name: str, exports: Exports) -> None:
    engine = mmn_fast.load(exports(name, "fp16"), backend="onnx", precision="fp16")
    videos, exact = cases.load(name).videos, cases.truths(name)
    queries = [mmn_fast.Query(mmn_fast.Video(v.features, v.duration_s), v.sentences) for v in videos]
    alone = [engine.score_maps([query])[0].fused for query in queries]
    for fused, expected in zip(alone, exact, strict=True):
        check_close(fused, expected, "onnx_backend", "fp16", name)
    for size in BATCH_SIZES:
        rows = np.arange(size) % len(queries)
        for row, maps in zip(rows, engine.score_maps([queries[row] for row in rows]), strict=True):
            assert maps.fused.tobytes() == alone[row].tobytes()


@pytest.mark.parametrize("name", ["charades_small", "charades_conv_small"])
def test_the_manifest_says_what_is_float32_and_what_each_attempt_gave(name: str, exports: Exports) -> None:
    import onnx

    directory = exports(name, "fp16")
    manifest = read_manifest(directory)
    *failed, last = manifest.verification["attempts"]
    assert failed, "these small random models need float32"
    assert all(one["max_error"] is None or one["max_error"] > BOUNDS["fp16"] for one in failed)
    assert last["max_error"] <= BOUNDS["fp16"]
    assert failed[0]["fp32_stages"] == []
    assert tuple(last["fp32_stages"]) == manifest.fp32_stages
    types = {one.name: one.data_type for one in onnx.load(directory / "video.onnx").graph.initializer}
    for number in range(manifest.preset.conv_layers):
        wide = f"proposal_conv.{number}" in manifest.fp32_stages
        expected = onnx.TensorProto.FLOAT if wide else onnx.TensorProto.FLOAT16
        assert types[f"proposal_conv.{number}.weight"] == expected
    assert types["heads.weight"] == types["clip_pool.weight"] == onnx.TensorProto.FLOAT


def test_mixed_graphs_are_strongly_typed_and_of_listed_operators(exports: Exports) -> None:
    """Every operator's operands have one type, as its schema demands, because TensorRT inserts no casts."""
    import onnx

    for name, file in read_manifest(exports("charades_small", "fp16")).graphs.items():
        model = onnx.load(exports("charades_small", "fp16") / file)
        onnx.checker.check_model(model, full_check=True)
        assert {node.op_type for node in model.graph.node} <= OPERATORS, name


def test_stages_in_float32_are_said_where_the_export_is_used(exports: Exports) -> None:
    directory = exports("charades_small", "fp16")
    found = verify(directory)
    assert tuple(found["fp32_stages"]) == read_manifest(directory).fp32_stages
    assert mmn_fast.load(directory, backend="onnx").info()["fp32_stages"] == read_manifest(directory).fp32_stages
    done = CliRunner().invoke(app, ["verify", str(directory)])
    assert "mixed: clip_pool, proposal_conv.0, proposal_conv.4, " in done.stdout
    assert " and heads of video in float32" in done.stdout
    assert "mixed" not in CliRunner().invoke(app, ["verify", str(exports("demo"))]).stdout


@pytest.mark.parametrize("name", PRESETS)
def test_attempts_keep_a_stage_in_fp16_and_go_on_with_more_float32(name: str) -> None:
    preset = PRESETS[name]
    assert attempts(preset, "fp32") == [()]
    none, *more = attempts(preset, "fp16")
    assert none == ()
    for before, after in zip([none, *more], more, strict=False):
        assert set(before) < set(after) < set(stages(preset))


def test_an_export_that_fails_leaves_nothing_behind(
    tmp_path: Path, golden_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is too small for every attempt; text, always fp16, exceeds it too, but the video is checked first."""
    tried, write = [], to_onnx._write

    def watched(name: str, model: LoadedModel, manifest: Manifest, directory: Path) -> None:
        tried.append((name, manifest.fp32_stages))
        write(name, model, manifest, directory)

    monkeypatch.setattr(to_onnx, "_write", watched)
    monkeypatch.setitem(BOUNDS, "fp16", 1e-5)
    message = (
        r"^video, batch of 1, row 0: fused_from_video .* within 1e-05, got [0-9.]+, also with clip_pool, "
        r"proposal_conv\.0, proposal_conv\.2, .* and heads in float32$"
    )
    with pytest.raises(VerificationError, match=message):
        export(golden_model("charades_small"), tmp_path / "out", precision="fp16", what=["video"])
    assert tried == [("video", stages) for stages in attempts(cases.load("charades_small").preset, "fp16")]
    assert list(tmp_path.iterdir()) == []


def test_more_float32_stages_are_not_tried_if_they_change_nothing(
    tmp_path: Path, golden_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setitem(BOUNDS, "fp16", 1e-5)
    monkeypatch.setattr(to_onnx, "attempts", lambda *arguments: tried.append(arguments) or [(), ("heads",)])
    with pytest.raises(VerificationError, match=r"^text, .* got [0-9.]+$"):
        export(golden_model("charades_small"), tmp_path / "out", precision="fp16", what=["text"])
    assert len(tried) == 1
