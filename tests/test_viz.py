"""Pictures and pages as users make them: files, bad input, the evaluation and the command line."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from benchmarks.golden import cases
from mmn_fast.errors import InputError
from mmn_fast.evaluation import Sample, evaluate
from mmn_fast.geometry import plan_for
from mmn_fast.presets import PRESETS
from mmn_fast.types import ScoreMaps
from mmn_fast.viz import GroundedQuery, evaluation_report, grounded, moment_map, refuse_existing, report, timeline
from tests.command import run_here
from tests.viz_pages import EVALUATION, MOMENTS, data_of, frames, parse, queries

# Files


def test_save_refuses_an_existing_file_and_leaves_no_partial_one(tmp_path):
    path = tmp_path / "page.html"
    page, picture = report([], 12.0), timeline([], duration_s=1)
    assert page.save(path).read_text(encoding="utf-8") == page.html
    with pytest.raises(InputError, match="already exists"):
        page.save(path)
    with pytest.raises(InputError, match="--html: .*already exists"):
        refuse_existing(path, "--html")
    report([], 24.0).save(path, overwrite=True)
    assert "24 s" in path.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="no such folder"):
        page.save(tmp_path / "missing" / "page.html")
    with pytest.raises(InputError, match="cannot write"):
        page.save(tmp_path, overwrite=True)
    assert parse(picture.save(tmp_path / "a.svg").read_text(encoding="utf-8")) is not None
    with pytest.raises(InputError, match=r"\.svg or \.png"):
        picture.save(tmp_path / "a.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "page.html"]


def test_saving_png_without_cairosvg_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    with pytest.raises(InputError, match="needs the package cairosvg"):
        timeline([], duration_s=1).save(tmp_path / "a.png")


def test_png_is_written_where_cairosvg_is_installed(tmp_path):
    pytest.importorskip("cairosvg", exc_type=ImportError)
    path = timeline(MOMENTS, duration_s=12.0).save(tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_viz_imports_neither_torch_nor_a_drawing_library():
    code = (
        "import sys, mmn_fast.viz; print([n for n in ('torch', 'matplotlib', 'PIL', 'cairosvg') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: timeline(MOMENTS, duration_s=0), "duration_s: expected a finite number > 0, got 0"),
        (lambda: timeline(MOMENTS, duration_s=float("nan")), "duration_s"),
        (lambda: timeline(["x"], duration_s=1), r"predictions\[0\]: expected GroundedQuery or Moment, got str"),
        (lambda: timeline(queries(), (1, 2), duration_s=1), "truth, sentence: expected none"),
        (lambda: timeline(MOMENTS, (1, 2, 3), duration_s=1), "truth_s: expected finite seconds"),
        (lambda: timeline(MOMENTS, duration_s=1, thumbnails=np.zeros((2, 3))), "thumbnails: expected RGB uint8"),
        (lambda: moment_map(np.zeros(3), np.zeros((2, 2), int), 4, 1.0), r"cells: expected \[P, 2\]"),
        (lambda: moment_map(np.zeros(1), np.array([[2, 1]]), 4, 1.0), r"0 <= i <= j < 4, got \[2, 1\]"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 4]]), 4, 1.0), "0 <= i <= j < 4"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 0]]), 4, 1.0, limits=(1, 1)), "limits: expected two finite"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 0]]), 4, 1.0, limits=0.5), "limits: expected two finite"),
        (lambda: moment_map(np.zeros((1, 1)), np.array([[0, 0]]), 4, 1.0), r"scores \[P\], got \[1, 1\]"),
        (lambda: moment_map(np.zeros(1), np.array([[0, 0]]), 0, 1.0), "num_clips: expected an integer >= 1"),
        (lambda: report(["x"], 1.0), r"queries\[0\]: expected GroundedQuery"),
        (lambda: report([], 1.0, frames=frames()), "fps: expected a finite number > 0 with frames, got None"),
        (lambda: report([], 1.0, frames=frames() / 255, fps=1), "frames: expected RGB uint8"),
        (lambda: evaluation_report(EVALUATION, [], max_rows=0), "max_rows"),
        (lambda: grounded(["a"], []), "results: expected one entry per sentence, 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


# With the evaluation and the command line


class _Engine:
    preset = PRESETS["charades-sta"]

    def score_maps(self, batch):
        cells = plan_for(self.preset).cells
        maps = []
        for query in batch:
            scores = np.random.default_rng(len(query.sentences)).random((len(query.sentences), len(cells)), np.float32)
            maps.append(ScoreMaps(scores, scores, scores, cells))
        return maps


def test_evaluate_hands_over_the_results_behind_its_figures():
    samples = [
        Sample(
            f"v{n}",
            16.0,
            tuple(f"s{s}" for s in range(n)),
            tuple(np.array([[s, s + 3.0]], np.float32) for s in range(n)),
            tuple(range(n)),
        )
        for n in (1, 2, 3)
    ]
    store = {sample.video_id: np.zeros((4, 4096), np.float32) for sample in samples}

    results = []
    with_results = evaluate(_Engine(), samples, store, on_result=results.append)
    without = evaluate(_Engine(), samples, store)
    assert with_results.metrics == without.metrics
    assert [(r.video_id, r.sentence) for r in results] == [(v.video_id, s) for v in samples for s in v.sentences]
    assert np.mean([r.iou for r in results]) == pytest.approx(without.metrics["mIoU"])
    for found in results:
        query = GroundedQuery(found.sentence, found.moments, found.truth_s)
        assert query.iou == pytest.approx(found.iou)
    data_of(evaluation_report(without, results))


@pytest.mark.slow
def test_ground_and_eval_write_pages(golden_model, golden_files, tmp_path):
    name = "charades_small"
    model, files, preset = golden_model(name), golden_files(name), cases.load(name).preset
    with h5py.File(files / "features.h5") as file:
        video = next(iter(file))
    features = f"{files / 'features.h5'}::{video}" + (f"/{preset.feature_key}" if preset.feature_key else "")
    page = tmp_path / "page.html"

    def run(*arguments):
        return run_here(*arguments, "--model", model, "--backend", "torch")

    ground = ["ground", "--features", features, "--duration", "12", "-q", "a person <b>runs</b>", "--html", page]
    done = run(*ground)
    assert done.returncode == 0, done.stderr
    assert data_of(page.read_text(encoding="utf-8"))["queries"][0]["sentence"] == "a person <b>runs</b>"
    again = run(*ground)
    assert again.returncode == 2
    assert "--html" in again.stderr

    annotations = tmp_path / "annotations.json"
    entry = {"duration": 12.0, "timestamps": [[1.0, 5.0]], "sentences": ["a person runs"]}
    annotations.write_text(json.dumps({video: entry}))
    page = tmp_path / "eval.html"
    done = run("eval", "--annotations", annotations, "--features", files / "features.h5", "--html", page)
    assert done.returncode == 0, done.stderr
    assert len(data_of(page.read_text(encoding="utf-8"))["rows"]) == 1
