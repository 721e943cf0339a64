"""score-file of tubes: a results.json scores as its evaluation did, and damaged ones end in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.evaluation.tubes import read_results, read_tube_annotations, score_results, tube_iou
from tests.command import run_here
from tests.published_tubes import CASE, near_truth, write_annotations
from tests.tolerances import check_close

QUERIES = CASE.tube_queries


def answer(query: Any) -> dict[str, Any]:
    rows = CASE.arrays[f"{query.video_id}.boxes"]
    boxes = {str(int(frame)): box for frame, box in zip(rows[:, 0], rows[:, 1:].tolist(), strict=True)}
    return {"st_frame": int(rows[0, 0]), "ed_frame": int(rows[-1, 0]), "bbox": boxes}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The official answers as results.json, and annotations near them."""
    results = tmp_path / "results.json"
    results.write_text(json.dumps({f"{query.video_id}.mp4": answer(query) for query in QUERIES}))
    return results, write_annotations(tmp_path / "val.json", QUERIES, truth=near_truth)


def changed(path: Path, **entries: Any) -> None:
    """Write other entries into a results.json; None takes one out."""
    content = json.loads(path.read_text()) | {f"{name}.mp4": entry for name, entry in entries.items()}
    path.write_text(json.dumps({name: entry for name, entry in content.items() if entry is not None}))


@pytest.mark.parametrize("half_open", [False, True])
def test_a_file_scores_as_its_answers_do(files: tuple[Path, Path], half_open: bool) -> None:
    results, annotations = files
    options = ["--preset", "hc-stvg", "--protocol", "half-open" if half_open else "mmn", "--json"]
    done = run_here("score-file", results, "--annotations", annotations, *options)
    assert done.returncode == 0, done.stderr
    report, overlaps = json.loads(done.stdout), []
    for query in QUERIES:
        rows, truth = CASE.arrays[f"{query.video_id}.boxes"], near_truth(query)
        overlaps.append(tube_iou(rows[:, 0], rows[:, 1:], truth[:, 0], truth[:, 1:], half_open))
    check_close(report["metrics"]["m_vIoU"], np.mean(overlaps, axis=0)[0], "golden_viou")
    check_close(report["metrics"]["m_tIoU"], np.mean(overlaps, axis=0)[1], "golden_viou")
    table = run_here("score-file", results, "--annotations", annotations, *options[:-1])
    assert f"{100 * report['metrics']['Best_R1']:.2f}" in table.stdout


def test_names_may_lack_the_extension(files: tuple[Path, Path]) -> None:
    results, annotations = files
    samples = read_tube_annotations(annotations)
    expected = score_results(results, samples).metrics
    results.write_text(results.read_text().replace(".mp4", ""))
    assert score_results(results, samples).metrics == expected


def test_answers_without_a_video_and_videos_without_an_answer_are_counted(files: tuple[Path, Path]) -> None:
    results, annotations = files
    changed(results, other=answer(QUERIES[0]), **{QUERIES[1].video_id: None})
    options = ["--annotations", annotations, "--preset", "hc-stvg"]
    done = run_here("score-file", results, *options)
    assert done.returncode == 2
    assert f"lacks 1 of {len(QUERIES)} videos: '{QUERIES[1].video_id}'" in done.stderr
    done = run_here("score-file", results, *options, "--skip-missing")
    assert done.returncode == 0
    assert "1 of 3 answers left out: the annotations lack their videos (first: 'other')" in done.stderr
    assert f"1 of {len(QUERIES)} videos skipped" in done.stderr
    assert run_here("score-file", results, *options, "--skip-missing", "--strict").returncode == 2


BOX = [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a", "expected an object with st_frame, ed_frame and bbox, got 'a'"),
        ({"st_frame": 1, "bbox": {}}, "missing ed_frame"),
        ({"st_frame": -1, "ed_frame": 1, "bbox": {}}, "st_frame: expected an integer"),
        ({"st_frame": 1, "ed_frame": 2, "bbox": [BOX, BOX]}, "bbox: expected an object with a box per frame"),
        (
            {"st_frame": 1, "ed_frame": 2, "bbox": {"1": BOX}},
            "for each of the 2 frames from 1 to 2, got 1",
        ),
        ({"st_frame": 2, "ed_frame": 1, "bbox": {}}, "for each of the 0 frames from 2 to 1, got 0"),
        ({"st_frame": 1, "ed_frame": 1, "bbox": {"2": BOX}}, "bbox: expected a box for frame 1, got none"),
        ({"st_frame": 1, "ed_frame": 1, "bbox": {"1": [0, 0, 1]}}, "bbox: frame 1: expected a box [x1, y1, x2, y2]"),
        ({"st_frame": 1, "ed_frame": 1, "bbox": {"1": [0, 0, 1, float("nan")]}}, ""),
        ({"st_frame": 1, "ed_frame": 1, "bbox": {"1": [0, 0, "1", 1]}}, "bbox: frame 1: expected a number"),
    ],
)
def test_damaged_answers_are_refused_in_a_sentence(files: tuple[Path, Path], entry: Any, message: str) -> None:
    results, _ = files
    changed(results, **{QUERIES[0].video_id: entry})
    with pytest.raises(InputError) as refused:
        read_results(results)
    assert str(refused.value).startswith(f"predictions: {results}: ")
    assert message in str(refused.value)


def test_an_inverted_box_overlaps_nothing(files: tuple[Path, Path]) -> None:
    results, annotations = files
    inverted = answer(QUERIES[0])
    inverted["bbox"] = {frame: [5.0, 5.0, 1.0, 9.0] for frame in inverted["bbox"]}
    changed(results, **{QUERIES[0].video_id: inverted})
    report = score_results(results, read_tube_annotations(annotations)[:1], skip_missing=True)
    assert report.metrics["m_vIoU"] == 0
    assert report.metrics["m_tIoU"] > 0


def test_what_is_no_results_json_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, annotations = files
    (tmp_path / "lines.jsonl").write_text('{"qid": 1, "pred_relevant_windows": []}\n')
    for name, message in (("lines.jsonl", "expected an object"), ("nowhere.json", "No such file")):
        done = run_here("score-file", tmp_path / name, "--annotations", annotations, "--preset", "hc-stvg")
        assert done.returncode == 2
        assert message in done.stderr, done.stderr
