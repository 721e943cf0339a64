"""Predictions without truth, scores of a file of predictions, and QVHighlights' figures."""

import json
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.main import get_command

from mmn_fast.cli import app
from mmn_fast.errors import InputError, WriteError
from mmn_fast.evaluation import PROTOCOLS, Sample, evaluate, predict, read_annotations, score_file
from mmn_fast.evaluation.judge import Judge
from tests.evaluation_double import FEATURES, SAMPLES, FakeEngine

CHARADES = {"recall_at": (1, 5), "recall_ious": (0.5, 0.7)}  # values of the fake engine's preset


# QVHighlights' figures: an independent evaluation in plain loops


def iou_of_sums(a, b):
    both = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return both / ((a[1] - a[0]) + (b[1] - b[0]) - both)


def iou_of_hull(a, b):
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0) / (max(a[1], b[1]) - min(a[0], b[0]))


def slow_precision(windows, moments, threshold):
    """Average precision: each moment in turn takes the best window that is left, or counts as wrong."""
    moments = sorted(moments[:10], key=lambda moment: -moment[2])
    free, right, points = list(range(len(windows))), 0, []
    for rank, moment in enumerate(moments, start=1):
        fitting = [at for at in free if iou_of_sums(moment, windows[at]) >= threshold]
        if fitting:
            free.remove(max(fitting, key=lambda at: (iou_of_sums(moment, windows[at]), at)))
            right += 1
        points.append((right / len(windows), right / rank))
    area, reached = 0.0, 0.0
    for at, (recall, _) in enumerate(points):
        if recall > reached:
            area += (recall - reached) * max(precision for _, precision in points[at:])
            reached = recall
    return area


def slow_figures(predicted, truths):
    figures = {}
    for name, low, high in (("full", -1, 1e9), ("short", 0, 10), ("middle", 10, 30), ("long", 30, 150)):
        hits, precisions = [], []
        for moments, windows in zip(predicted, truths, strict=True):
            windows = [window for window in windows if low < window[1] - window[0] <= high]
            if not windows:
                continue
            best = max(windows, key=lambda window: iou_of_sums(moments[0], window)) if moments else None
            hits.append(iou_of_hull(moments[0], best) if moments else 0.0)
            precisions.append([slow_precision(windows, moments, round(0.5 + 0.05 * step, 2)) for step in range(10)])
        if hits:
            figures[f"MR-{name}-R1@0.5"] = np.mean([hit >= 0.5 for hit in hits])
            figures[f"MR-{name}-R1@0.7"] = np.mean([hit >= 0.7 for hit in hits])
            figures[f"MR-{name}-mAP@0.5"] = np.mean([row[0] for row in precisions])
            figures[f"MR-{name}-mAP@0.75"] = np.mean([row[5] for row in precisions])
            figures[f"MR-{name}-mAP"] = np.mean(precisions)
    return figures


def drawn(seed, number=150, grid=0.0):
    """Draw truths of one to four windows of two-second clips, and up to 13 moments that are not sorted by score."""
    rng = np.random.RandomState(seed)
    predicted, truths = [], []
    for _ in range(number):
        starts = 2.0 * np.sort(rng.randint(0, 70, rng.randint(1, 5)))
        windows = [[float(start), float(start + 2 * rng.randint(1, 20))] for start in starts]
        moments = []
        for _ in range(rng.randint(0, 14)):
            start, end = np.array(windows[rng.randint(len(windows))]) + rng.randn(2) * rng.choice([0.5, 2, 8])
            start, end = sorted((max(start, 0), max(end, 0.25)))
            score = rng.rand()
            if grid:
                start, end, score = np.floor(start / grid) * grid, np.floor(end / grid + 1) * grid, round(score, 1)
            moments.append([float(start), float(end), float(score)])
        predicted.append(moments)
        truths.append(windows)
    return predicted, truths


@pytest.mark.parametrize(("seed", "grid"), [(0, 0), (1, 0), (2, 2.0), (3, 5.0)])
def test_the_figures_of_qvhighlights_are_those_of_the_independent_evaluation(seed, grid):
    predicted, truths = drawn(seed, grid=grid)
    judge = Judge(PROTOCOLS["qvh"], (1, 5), (0.5, 0.7))
    for moments, windows in zip(predicted, truths, strict=True):
        judge.add(np.array(moments, np.float64).reshape(-1, 3), np.array(windows))
    metrics, expected = judge.metrics(), slow_figures(predicted, truths)
    assert {name for name in metrics if name.startswith("MR-")} == set(expected)
    for name, figure in expected.items():
        assert f"{100 * metrics[name]:.2f}" == f"{100 * figure:.2f}", name
    assert metrics["R@1,IoU@0.5"] == metrics["MR-full-R1@0.5"]
    assert 0 < metrics["MR-full-mAP"] < 1


def judged(moments, windows):
    judge = Judge(PROTOCOLS["qvh"], (1, 5), (0.5, 0.7))
    judge.add(np.array(moments, np.float64).reshape(-1, 3), np.array(windows, np.float64))
    return judge.metrics()


def test_r1_takes_the_first_moment_of_the_file_and_the_best_of_several_windows():
    found = judged([[20, 30, 0.1], [0, 5, 0.9]], [[0, 5], [20, 31]])
    assert found["MR-full-R1@0.7"] == found["R@1,IoU@0.7"] == 1
    assert judged([[50, 60, 0.9], [0, 5, 0.1]], [[0, 5]])["MR-full-R1@0.5"] == 0


def test_map_takes_the_first_ten_moments_of_the_file_by_their_score():
    wrong = [[100 + number, 101 + number, 0.5] for number in range(9)]
    assert judged([*wrong, [0, 5, 0.9]], [[0, 5]])["MR-full-mAP"] == 1
    assert judged([*wrong, [70, 71, 0.5], [0, 5, 0.9]], [[0, 5]])["MR-full-mAP"] == 0
    assert judged([*wrong, [0, 5, 0.4]], [[0, 5]])["MR-full-mAP"] == pytest.approx(0.1)


def test_ranges_of_length_end_at_their_upper_bound_and_an_empty_one_has_no_figure():
    found = judged([[0, 10, 0.9]], [[0, 10]])
    assert found["MR-short-mAP"] == 1
    assert not [name for name in found if "middle" in name or "long" in name]
    both = judged([[0, 10, 0.9]], [[0, 10], [40, 52]])
    assert (both["MR-short-mAP"], both["MR-middle-mAP"], both["MR-full-mAP@0.5"]) == (1, 0, 0.5)


def test_a_sentence_without_moments_counts_as_not_found():
    assert set(judged([], [[0, 5]]).values()) == {0}


# predict


def without_truth(sample):
    nothing = (np.empty((0, 2)),) * len(sample.sentences)
    return Sample(sample.video_id, sample.duration_s, sample.sentences, nothing, sample.query_ids)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predict_writes_the_file_of_evaluate_and_score_file_gives_its_figures(tmp_path, protocol):
    figures = evaluate(FakeEngine(), SAMPLES, FEATURES, protocol=protocol, predictions=tmp_path / "a.jsonl")
    unknown = [without_truth(sample) for sample in SAMPLES]
    report = predict(FakeEngine(), unknown, FEATURES, tmp_path / "b.jsonl", protocol=protocol)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (report.num_videos, report.num_sentences, report.num_skipped) == (5, 15, 0)
    scored = score_file(tmp_path / "b.jsonl", SAMPLES, protocol=protocol, **CHARADES)
    assert scored.metrics == figures.metrics
    assert (scored.num_videos, scored.num_sentences) == (5, 15)
    assert ("MR-full-mAP" in scored.metrics) == (protocol == "qvh")
    assert "moments as the file ranks them" in scored.table()
    assert ("mAP@0.75" in figures.table()) == (protocol == "qvh")


def test_evaluating_without_truth_is_refused_before_any_work():
    engine = FakeEngine()
    with pytest.raises(
        InputError, match=r"^samples: expected a true window .* 1 of 2 videos: 'v1' \(predict needs none"
    ):
        evaluate(engine, [SAMPLES[0], without_truth(SAMPLES[1])], FEATURES)
    assert not engine.batches


def test_predictions_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError, match="broke"):
        predict(FakeEngine(fail_at=3), SAMPLES, FEATURES, tmp_path / "a.jsonl", batch_size=1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.jsonl").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        predict(FakeEngine(), SAMPLES, FEATURES, tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == "mine"


def test_a_file_that_the_system_refuses_ends_the_work_in_a_sentence(tmp_path):
    engine, (soft, hard) = FakeEngine(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(WriteError, match=r"^output: cannot write .*a\.jsonl: File too large$"):
            predict(engine, SAMPLES, FEATURES, tmp_path / "a.jsonl", batch_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_the_commands_predict_and_score_a_file(tmp_path, capsys):
    """The demo model predicts one video without its truth; the file is then scored with the truth."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["v"] = np.random.RandomState(0).rand(32, 357).astype(np.float32)
    record = {"duration": 8.0, "sentences": ["the red circle grows", "the square leaves"]}
    (tmp_path / "blind.json").write_text(json.dumps({"v": record}))
    (tmp_path / "truth.json").write_text(json.dumps({"v": record | {"timestamps": [[0, 4], [2, 3]]}}))

    def run(*arguments):
        assert get_command(app)(list(map(str, arguments)), standalone_mode=False) in (None, 0)
        return capsys.readouterr().out

    common = ("--annotations", tmp_path / "blind.json", "--features", tmp_path / "f.h5", "-o", tmp_path / "p.jsonl")
    assert json.loads(run("predict", "--model", "demo", *common, "-k", 3, "--json"))["num_sentences"] == 2
    with pytest.raises(InputError, match="--top-k: expected a number >= 1, got 0"):
        run("predict", "--model", "demo", *common[:-1], tmp_path / "none.jsonl", "-k", 0)
    lines = [json.loads(one) for one in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [one["qid"] for one in lines] == ["v#0", "v#1"]
    assert all(len(one["pred_relevant_windows"]) == 3 for one in lines)
    scored = ("score-file", tmp_path / "p.jsonl", "--annotations", tmp_path / "truth.json", "--protocol", "qvh")
    metrics = json.loads(run(*scored, "--json"))["metrics"]
    assert {"R@5,IoU@0.3", "mIoU", "MR-short-mAP"} <= set(metrics)
    assert "moments as the file ranks them" in run(*scored)


# annotations without windows


def line(**changes):
    return json.dumps({"qid": 7, "query": "A man.", "vid": "v", "duration": 10} | changes) + "\n"


def official(**changes):
    return json.dumps({"v": {"duration": 10.0, "sentences": ["a b", "c d"]} | changes})


@pytest.mark.parametrize(
    "content",
    [
        line(),
        line(relevant_windows=None),
        line(relevant_windows=[]),
        line(relevant_windows=[[9, 3]]),
        line(relevant_windows="held back"),
        official(),
        official(timestamps=None),
        official(timestamps=[]),
        official(timestamps=[None, [1, 2]]),
        official(timestamps=[[9, 3], [1, 2]]),
        json.dumps({"v": {"fps": 2, "num_frames": 20, "sentences": ["a b"]}}),
        "v##a b\nv 1.0 2.0##c d\n",
    ],
)
def test_annotations_without_windows_are_read_for_prediction(tmp_path, content):
    path = tmp_path / "annotations"
    path.write_text(content)
    durations = {"v": 10.0} if content.startswith("v") else None
    (sample,) = read_annotations(path, durations=durations, truth=False)
    assert (sample.video_id, sample.duration_s) == ("v", 10)
    assert [windows.shape for windows in sample.moments_s] == [(0, 2)] * len(sample.sentences)
    if "c d" in content:
        assert sample.sentences == ("a b", "c d")
        assert sample.query_ids == ("v#0", "v#1")


@pytest.mark.parametrize(
    "content",
    [line(relevant_windows=None), line(relevant_windows=[]), official(timestamps=None), official(timestamps=[])],
)
def test_annotations_without_any_window_are_refused_for_evaluation_and_predict_is_named(tmp_path, content):
    (tmp_path / "annotations").write_text(content)
    with pytest.raises(InputError, match=r"no video with a sentence and a window in it; `mmn-fast predict` needs no"):
        read_annotations(tmp_path / "annotations")


@pytest.mark.parametrize(("content", "field"), [(line(), "relevant_windows"), (official(), "timestamps")])
def test_a_field_that_is_missing_is_named_and_so_is_predict(tmp_path, content, field):
    (tmp_path / "annotations").write_text(content)
    with pytest.raises(InputError, match=rf"missing {field}; it has .* \(`mmn-fast predict` needs no windows\)$"):
        read_annotations(tmp_path / "annotations")


def test_sentences_whose_windows_are_null_are_left_out_of_evaluation(tmp_path, caplog):
    (tmp_path / "annotations").write_text(official(timestamps=[None, [1, 2]]))
    (sample,) = read_annotations(tmp_path / "annotations")
    assert sample.query_ids == ("v#1",)
    assert "1 of 2 sentences left out: they have no window (first: video 'v', sentence 'a b')" in caplog.text


# score_file


def written(tmp_path, *lines):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in lines))
    return path


TRUTH = [Sample("v", 20.0, ("a", "b"), (np.array([[0.0, 4]]), np.array([[4.0, 8], [10, 12]])), (1, "two"))]


def prediction(name, *windows):
    return {"qid": name, "pred_relevant_windows": list(windows)}


def test_names_of_sentences_may_be_numbers_or_texts(tmp_path):
    path = written(tmp_path, prediction("1", [0, 4, 0.5]), "\n", prediction("two", [10, 12, 1]))
    assert score_file(path, TRUTH).metrics["R@1,IoU@0.7"] == 1


def test_missing_and_foreign_predictions_are_counted(tmp_path, caplog):
    path = written(tmp_path, prediction(1, [0, 4, 0.5]), prediction(3, [0, 4, 0.5]))
    with pytest.raises(
        InputError, match=r"^predictions: .*p\.jsonl lacks 1 of 2 sentences: 'two' \(skip_missing leaves"
    ):
        score_file(path, TRUTH)
    report = score_file(path, TRUTH, skip_missing=True)
    assert (report.num_sentences, report.metrics["R@1,IoU@0.7"]) == (1, 1)
    assert "1 of 2 sentences skipped: they have no predictions (first: 'two')" in caplog.text
    assert "1 of 2 predictions left out: the annotations lack their sentences (first: '3')" in caplog.text
    facts = report.to_dict()
    assert [(facts[kind][0]["what"], facts[kind][0]["count"]) for kind in ("skipped", "left_out")] == [
        ("sentences", 1),
        ("predictions", 1),
    ]
    with pytest.raises(InputError, match=r"^strict: 1 of 2 sentences skipped: .*; 1 of 2 predictions left out: "):
        score_file(path, TRUTH, skip_missing=True, strict=True)
    with pytest.raises(InputError, match=r"lacks 2 of 2 sentences: '1', 'two'$"):
        score_file(written(tmp_path, prediction(3, [0, 4, 0.5])), TRUTH, skip_missing=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n", r"line 1: not JSON"),
        ("[" * 100000 + "\n", r"line 1: expected at most \d+ levels of nesting, got more"),
        ("[]\n", r"line 1: expected an object with qid and pred_relevant_windows, got '\[\]'"),
        ('{"qid": 1}\n', r"line 1: expected an object with qid and pred_relevant_windows"),
        (json.dumps(prediction(True, [0, 1, 1])), r"qid: expected an integer or a string, got True"),
        (json.dumps(prediction(1, [0, 1])), r"expected \[start, end, score\] of finite numbers, got \[0, 1\]"),
        (json.dumps(prediction(1, [0, float("nan"), 1])), r"of finite numbers, got \[0, nan, 1\]"),
        (json.dumps(prediction(1, [0, 10**400, 1])), r"expected integers of 64 bits, got one of 401 digits"),
        (json.dumps(prediction(1, [2, 1, 1])), r"expected start <= end, got \[2, 1, 1\]"),
        (
            json.dumps(prediction(1)) + "\n" + json.dumps(prediction("1")),
            r"line 2: qid '1' is taken by an earlier line",
        ),
        ('{"qid": 1, "pred_relevant_windows": 3}', r"pred_relevant_windows: expected a list, got int"),
        ("\n", r"expected a JSON line per sentence, got none"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"^predictions: .*p\.jsonl.*{message}"):
        score_file(written(tmp_path, content), TRUTH)


def test_other_bytes_and_missing_files_are_refused(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "p.jsonl", tmp_path / "absent", Path(tmp_path)):
        with pytest.raises(InputError, match=r"^predictions: "):
            score_file(path, TRUTH)
