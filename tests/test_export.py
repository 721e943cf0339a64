"""Exports compute the reference's results, and backend "onnx" runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.artifact.manifest import read_manifest, signature
from mmn_fast.backends.base import Settings
from mmn_fast.backends.ort import OnnxBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.cli import app
from mmn_fast.evaluation.agreement import LabelledSplit, agreement_with
from mmn_fast.export.verify import BOUNDS, OPERATORS
from mmn_fast.geometry import plan_for
from mmn_fast.geometry_crops import framed_crops
from mmn_fast.presets import PRESETS
from mmn_fast.types import ScoreMaps
from tests.conftest import DemoSplit, Exports
from tests.golden.grounded import batch_of
from tests.tolerances import TOLERANCES, check_close

pytestmark = pytest.mark.slow
BATCHES = (1, 2, 8, 33)
# Export and verification of one case take up to minutes.
GOLDEN = ["charades_small", *(pytest.param(n, marks=pytest.mark.long) for n in (*cases.SMALL[1:], *cases.FULL))]


@pytest.mark.parametrize("name", [*PRESETS, *cases.SMALL])
def test_bands_hold_every_needed_cell_once(name: str) -> None:
    plan = plan_for(PRESETS[name] if name in PRESETS else cases.load(name).preset)
    crops = framed_crops(plan)
    frame = crops.input_frame
    for layer, planned in zip(crops.layers, plan.layers, strict=True):
        covered = np.zeros((planned.side, planned.side), int)
        for b in layer.bands:
            covered[b.top : b.bottom, b.left : b.right] += 1
            assert frame.top <= b.top
            assert b.bottom + plan.kernel - 1 <= frame.bottom
            assert frame.left <= b.left
            assert b.right + plan.kernel - 1 <= frame.right
        assert (covered[planned.cells[:, 0], planned.cells[:, 1]] == 1).all()
        assert covered.max() == 1
        frame = layer.frame
    assert crops.work(plan) < 1


@pytest.mark.parametrize(
    ("name", "most"), [("charades-sta", 0.55), ("activitynet-captions", 0.55), ("tacos", 0.5), ("hc-stvg", 0.65)]
)
def test_bands_cost_no_more_than_boxes(name: str, most: float) -> None:
    """With one box per layer, the work would be 0.60 to 0.75 of the dense convolutions."""
    plan = plan_for(PRESETS[name])
    assert framed_crops(plan).work(plan) <= most


@pytest.mark.parametrize("name", GOLDEN)
def test_onnx_gives_the_official_scores(name: str, exports: Exports) -> None:
    case, engine = cases.load(name), mmn_fast.load(exports(name), backend="onnx")
    for maps, video in zip(engine.score_maps(batch_of(case)), case.videos, strict=True):
        check_close(maps.fused, video.truth, "onnx_backend", what=name)


def test_onnx_agrees_with_the_reference_on_the_demo(exports: Exports, demo_split: DemoSplit) -> None:
    """A hundred sentences are compared; `test_onnx_agrees_on_a_thousand_sentences` checks the promised thousand."""
    _agree("fp32", exports, *demo_split(12))


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_agrees_on_a_thousand_sentences(precision: str, exports: Exports, demo_split: DemoSplit) -> None:
    split, expected = demo_split(150)
    assert split.num_sentences >= 1000
    _agree(precision, exports, split, expected)


def _agree(precision: str, exports: Exports, split: LabelledSplit, expected: list[ScoreMaps]) -> None:
    engine = mmn_fast.load(exports("demo", precision), backend="onnx", precision=precision)
    found = agreement_with(engine, expected, split)
    assert found.top1 >= {"fp32": 1.0, "fp16": 0.99}[precision]
    if precision == "fp32":  # for fp16 only the agreement is promised; its scores are up to 2.1e-3 off
        assert found.max_fused_difference <= TOLERANCES["onnx_backend", precision].atol


def test_onnx_results_do_not_depend_on_batch_or_threads(exports: Exports) -> None:
    model = load_model(exports("demo"))
    one, two = (OnnxBackend(model, Settings("cpu", "fp32", threads)) for threads in (1, 2))
    rng, p = np.random.default_rng(0), model.preset
    videos = rng.standard_normal((max(BATCHES), p.num_pre_clips, p.input_size)).astype(np.float32)
    tokens = [rng.integers(1, model.text.vocab_size, 2 + n % 23) for n in range(max(BATCHES))]
    all_videos, all_text = one.encode_video(videos), one.encode_text(tokens)
    side = all_videos[0][0], all_videos[1][0]
    all_scores = one.score(side, all_text)
    for size in BATCHES:
        for given, expected in (
            (two.encode_video(videos[-size:]), all_videos),
            (two.encode_text(tokens[-size:]), all_text),
            (two.score(side, (all_text[0][-size:], all_text[1][-size:])), all_scores),
        ):
            assert all(ours.tobytes() == theirs[-size:].tobytes() for ours, theirs in zip(given, expected, strict=True))
    assert one.encode_video(videos[:0])[0].shape == (0, *all_videos[0].shape[1:])
    assert one.encode_text([])[0].shape == (0, p.joint_size)


def test_onnx_writes_every_value_of_a_poisoned_output(exports: Exports) -> None:
    model = load_model(exports("demo"))
    backend = OnnxBackend(model, Settings("cpu", "auto", 1))
    contrastive, iou = np.full((2, 1, *backend._sizes), np.nan, np.float32)
    clips = np.random.default_rng(0).standard_normal((1, model.preset.num_pre_clips, model.preset.input_size))
    backend._graphs["video"](
        {"pre_clips": clips.astype(np.float32)}, {"video_contrastive": contrastive, "video_iou": iou}
    )
    for array in (contrastive, iou):
        check_close(np.linalg.norm(array, axis=-1), np.ones(array.shape[:2]), "unit_norm")


@pytest.mark.parametrize("backend", ["onnx", "auto"])
def test_onnx_needs_no_torch(backend: str, exports: Exports) -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'onnx'):\n"
        "            raise ModuleNotFoundError(name + ' is blocked', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import numpy as np, mmn_fast\n"
        f"engine = mmn_fast.load({str(exports('demo'))!r}, backend={backend!r})\n"
        "video = mmn_fast.Video(np.ones((20, 357), np.float32), 12.0)\n"
        "(moments,), = engine.ground([mmn_fast.Query(video, ['the red circle moves'])], top_k=3)\n"
        "assert 1 <= len(moments) <= 3, moments\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_manifest_says_what_is_there(exports: Exports) -> None:
    manifest = read_manifest(exports("demo"))
    assert set(manifest.graphs) == {"video", "text", "score"}
    assert {file.name for file in exports("demo").iterdir()} == {"manifest.json", *manifest.files}
    assert manifest.fingerprint == load_model("demo").fingerprint
    assert manifest.verification["batch_sizes"] == list(BATCHES)
    assert 0 < max(manifest.verification["max_error"].values()) <= BOUNDS["fp32"]
    assert manifest.verification["top1_agreement"] == 1
    assert {"mmn_fast", "torch", "onnx", "onnxruntime", "numpy"} <= set(manifest.versions)
    assert manifest.signature("video") == signature("video", manifest.preset)
    assert len(manifest.weights_sha256) == 64


def test_graphs_have_only_the_listed_operators(exports: Exports) -> None:
    import onnx

    for name, file in read_manifest(exports("demo")).graphs.items():
        model = onnx.load(exports("demo") / file)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version <= 10, "the newest that the ONNX of TensorRT 10.0, 1.16, reads"
        used = {node.op_type for node in model.graph.node}
        assert used <= OPERATORS, name
        assert "BatchNormalization" not in used
        assert all(node.domain == "" for node in model.graph.node)


def test_graphs_do_not_say_where_they_were_made(exports: Exports) -> None:
    """The same model must give the same bytes on any machine."""
    import onnx

    for file in read_manifest(exports("demo")).graphs.values():
        content = (exports("demo") / file).read_bytes()
        for package in (mmn_fast, torch):
            assert str(package.__file__).removesuffix("__init__.py").encode() not in content
        assert not any(node.metadata_props for node in onnx.load_from_string(content).graph.node)


def test_verify_command_accepts_a_good_export(exports: Exports) -> None:
    done = CliRunner().invoke(app, ["verify", str(exports("demo")), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["batch_sizes"] == list(BATCHES)


def test_auto_runs_an_export_on_the_backend_that_can(exports: Exports) -> None:
    assert mmn_fast.load(exports("demo")).info()["backend"] == "onnx"


def test_raw_features_through_the_command(tmp_path: Path) -> None:
    """Source rows with arbitrary padding give the engine's results for their pre-clips."""
    import onnxruntime

    output = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", "demo", "-o", str(output), "--raw-features", "--what", "video"])
    assert done.exit_code == 0, done.output
    assert read_manifest(output).raw_features
    rows = np.random.default_rng(0).standard_normal((77, 357)).astype(np.float32)
    padded = np.full((1, 90, 357), np.nan, np.float32)
    padded[0, :77] = rows
    session = onnxruntime.InferenceSession(str(output / "video.onnx"))
    contrastive, iou = session.run(None, {"features": padded, "lengths": np.array([77])})
    expected = mmn_fast.load("demo", backend="torch", precision="fp64").encode_video([mmn_fast.Video(rows, 30.0)])
    check_close(contrastive, expected.contrastive, "onnx_backend", what="contrastive")
    check_close(iou, expected.iou, "onnx_backend", what="iou")
