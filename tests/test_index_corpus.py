"""Retrieval from a library has TVR's figures, and its predictions are TVR's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast import MomentIndex
from mmn_fast.errors import InputError
from mmn_fast.evaluation import Sample
from mmn_fast.evaluation.corpus import evaluate_corpus
from mmn_fast.evaluation.corpus.figures import found_at
from tests.command import run_here
from tests.index_task import random_videos, tiny_engine

WORDS = ("dog", "the", "a")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> mmn_fast.Engine:
    return tiny_engine(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def index(engine: mmn_fast.Engine, tmp_path: Path) -> Any:
    with MomentIndex.create(tmp_path / "it", engine, model=engine.info()["model"]) as made:
        made.add(random_videos(engine, [f"video {n}" for n in range(12)], 1, cut=(3,)))
        yield made


def _annotations(index: MomentIndex, videos: int = 10) -> dict[str, Any]:
    """Annotations of the first videos: sentences of some words and moments anywhere."""
    rng = np.random.default_rng(3)
    content = {}
    for video_id in index.video_ids[:videos]:
        duration_s = index.duration_s(video_id)
        count = int(rng.integers(1, 4))
        starts = rng.uniform(0, 0.5, count) * duration_s
        content[video_id] = {
            "duration": duration_s,
            "sentences": [" ".join(rng.choice(WORDS, 4)) + f" {n}" for n in range(count)],
            "timestamps": [[float(start), float(start + duration_s * rng.uniform(0.2, 0.5))] for start in starts],
        }
    return content


def _plain(submission: dict[str, Any], annotations: dict[str, Any], task: str) -> dict[str, float]:
    """TVR's definitions, as plainly as they can be written."""
    truths = {
        f"{video_id}#{number}": (video_id, window)
        for video_id, video in annotations.items()
        for number, window in enumerate(video["timestamps"])
    }
    figures = {}
    for iou in (0.5, 0.7) if task != "VR" else (None,):
        for k in (1, 5, 10, 100):
            hits = []
            for line in submission[task]:
                video_id, (start, end) = truths[line["desc_id"]]
                hit = False
                for number, first, last, _ in line["predictions"][:k]:
                    overlap = max(0.0, min(last, end) - max(first, start))
                    hull = max(last, end) - min(first, start)
                    fits = iou is None or overlap / hull >= iou
                    hit = hit or (number == submission["video2idx"][video_id] and fits)
                hits.append(hit)
            figures[f"R@{k}" + (f",IoU@{iou:g}" if iou else "")] = float(np.mean(hits))
    return figures


def test_the_command_prints_tvrs_figures_and_writes_its_file(
    index: MomentIndex, engine: mmn_fast.Engine, tmp_path: Path
) -> None:
    annotations, out = _annotations(index), tmp_path / "tvr.json"
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    asked = ("eval", "--corpus", index.path, "--annotations", tmp_path / "a.json")
    done = run_here(*asked, "--predictions", out, "--json")
    assert done.returncode == 0
    report, submission = json.loads(done.stdout), json.loads(out.read_text())
    assert (report["library"], report["num_videos"], report["protocol"]) == (12, 10, "tvr")
    for task in ("VCMR", "SVMR", "VR"):
        assert report["metrics"][task] == _plain(submission, annotations, task)
        assert report["metrics"][task].keys() >= (
            {"R@1", "R@100"} if task == "VR" else {"R@1,IoU@0.5", "R@100,IoU@0.7"}
        )
    assert report["metrics"]["VR"]["R@100"] == 1.0
    assert 0 < report["metrics"]["VCMR"]["R@100,IoU@0.5"] < 1
    assert list(submission["video2idx"]) == index.video_ids
    first = submission["VCMR"][0]
    sentence = annotations["video 0"]["sentences"][0]
    (moments,) = MomentIndex.open(index.path, engine).search([sentence], 100, 100)
    assert first["desc"] == sentence
    assert first["predictions"] == [[submission["video2idx"][m.video_id], m.start_s, m.end_s, m.score] for m in moments]
    table = run_here(*asked, "--limit", "3").stdout
    assert "protocol tvr: the right video and IoU >= m count" in table
    assert "sentences of 3 videos, in a library of 12" in table
    assert table.count("| VCMR") == 2


def test_what_is_refused(index: MomentIndex, tmp_path: Path) -> None:
    annotations = _annotations(index)
    annotations["elsewhere"] = annotations["video 0"]
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    asked = ("eval", "--corpus", index.path, "--annotations", tmp_path / "a.json")
    done = run_here(*asked)
    assert done.returncode == 2
    assert done.stderr == (
        f"mmn-fast: --corpus: {index.path} lacks 1 of the 11 videos with sentences: 'elsewhere' (--skip-missing leaves"
        " them out)\n"
    )
    done = run_here(*asked, "--skip-missing", "--json")
    assert json.loads(done.stdout)["skipped"][0]["count"] == 1
    for more, said in (
        (("--features", "x.h5"), "--features: expected none with --corpus"),
        (("--window", "3"), "--window: expected none with --corpus"),
        (("--protocol", "qvh"), "--protocol: expected none with --corpus"),
        (("--skip-missing", "--strict"), "1 of 11 videos skipped"),
    ):
        done = run_here(*asked, *more)
        assert done.returncode == 2
        assert said in done.stderr
    done = run_here("eval", "--corpus", tmp_path / "none", "--annotations", tmp_path / "a.json")
    assert done.stderr.startswith("mmn-fast: --corpus: ")
    done = run_here("eval", "--annotations", tmp_path / "a.json")
    assert done.stderr == "mmn-fast: --features: give the videos' features, or a library with --corpus\n"


def test_a_sentence_with_several_true_moments_counts_if_one_is_found(
    index: MomentIndex, engine: mmn_fast.Engine
) -> None:
    moments = MomentIndex.open(index.path, engine).search(["the dog"], 1, videos=["video 3"])[0]
    truth = np.array([[0.0, 0.01], [moments[0].start_s, moments[0].end_s]])
    sample = Sample("video 3", 9.5, ("the dog",), (truth,), ("q",))
    metrics = evaluate_corpus(engine, index, [sample]).metrics
    assert metrics["SVMR"]["R@1,IoU@0.7"] == 1.0
    with pytest.raises(InputError, match="^samples: expected a true window for every sentence"):
        evaluate_corpus(engine, index, [Sample("video 3", 9.5, ("the dog",), (np.empty((0, 2)),), ("q",))])


def test_an_iou_at_the_threshold_counts() -> None:
    spans = np.array([[0.0, 5.0], [0.0, 4.9], [0.0, 10.0], [2.0, 2.0]])
    found = found_at(spans, np.array([True, True, False, True]), np.array([[0.0, 10.0]]))
    assert found[0.5].tolist() == [True, False, False, False]
    assert not found[0.7].any()
