"""The evaluation loop: its calls of the engine, skipped videos, predictions and report."""

import json

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.evaluation import (
    PROTOCOLS,
    EvaluationReport,
    evaluate,
    evaluate_maps,
    mean_iou,
    predict,
    read_annotations,
    recall_at,
)
from mmn_fast.evaluation.metrics import best_ious
from tests.evaluation_double import CHARADES, FEATURES, SAMPLES, FakeEngine


def without(*video_ids):
    return {name: features for name, features in FEATURES.items() if name not in video_ids}


def test_evaluate_agrees_with_evaluate_maps():
    engine = FakeEngine()
    report = evaluate(engine, SAMPLES, FEATURES)
    maps = [engine.maps(query) for query in engine.queries]
    direct = evaluate_maps(
        CHARADES,
        [m.contrastive for m in maps],
        [m.iou for m in maps],
        [sample.duration_s for sample in SAMPLES],
        [sample.moments_s for sample in SAMPLES],
    )
    assert report.metrics == direct
    assert [(q.video.video_id, q.video.duration_s, tuple(q.sentences)) for q in engine.queries] == [
        (s.video_id, s.duration_s, s.sentences) for s in SAMPLES
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_changes_neither_metrics_nor_predictions(tmp_path, batch_size):
    engine = FakeEngine()
    report = evaluate(engine, SAMPLES, FEATURES, batch_size=batch_size, predictions=tmp_path / "a.jsonl")
    expected = evaluate(FakeEngine(), SAMPLES, FEATURES, batch_size=3, predictions=tmp_path / "b.jsonl")
    assert report.metrics == expected.metrics
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert max(map(len, engine.batches)) == min(batch_size, len(SAMPLES))


def test_features_are_read_batch_by_batch():
    engine = FakeEngine()

    class Store:
        """A store that fails if it is read more than one batch ahead of the engine."""

        reads = 0

        def __contains__(self, video_id):
            return video_id in FEATURES

        def __getitem__(self, video_id):
            assert self.reads - sum(map(len, engine.batches)) < 2
            self.reads += 1
            return FEATURES[video_id]

    store = Store()
    evaluate(engine, SAMPLES, store, batch_size=2)
    assert store.reads == len(SAMPLES)


def test_limit_evaluates_the_first_videos_only_and_says_of_how_many(caplog):
    engine = FakeEngine()
    report = evaluate(engine, SAMPLES, FEATURES, limit=2)
    assert engine.batches == [["v0", "v1"]]
    assert (report.num_videos, report.num_sentences, report.num_skipped) == (2, 4, 0)
    assert "first 2 of 5 videos only: limit 2" in caplog.text
    assert [(n["count"], n["total"], n["first"]) for n in report.to_dict()["limited"]] == [(3, 5, "'v2', 'v3', 'v4'")]
    caplog.clear()
    whole = evaluate(FakeEngine(), SAMPLES, FEATURES, limit=99)
    assert (whole.num_videos, whole.notes, caplog.text) == (5, (), "")


def test_videos_without_features_are_named_before_any_work():
    engine = FakeEngine()
    with pytest.raises(InputError, match=r"^features: no features for 4 of 5 videos: 'v0', 'v1', 'v2', \.\.\. \("):
        evaluate(engine, SAMPLES, {"v3": FEATURES["v3"]}, limit=1)
    assert not engine.batches


def test_skip_missing_passes_over_them_and_reports_how_many(caplog):
    report = evaluate(FakeEngine(), SAMPLES, without("v0", "v2"), skip_missing=True)
    assert (report.num_videos, report.num_sentences, report.num_skipped) == (3, 8, 2)
    assert "2 of 5 videos skipped: they have no features (first: 'v0', 'v2')" in caplog.text
    assert [(note.kind, note.what, note.count, note.total) for note in report.notes] == [("skipped", "videos", 2, 5)]
    assert report.to_dict()["skipped"][0]["first"] == "'v0', 'v2'"
    kept = [SAMPLES[1], SAMPLES[3], SAMPLES[4]]
    assert report.metrics == evaluate(FakeEngine(), kept, FEATURES).metrics


def test_strict_skips_no_video_and_cuts_no_sentence(tmp_path):
    engine = FakeEngine()
    with pytest.raises(InputError, match=r"^strict: 1 of 5 videos skipped: they have no features \(first: 'v0'\)$"):
        evaluate(engine, SAMPLES, without("v0"), skip_missing=True, strict=True)
    engine.max_tokens, engine.cut_sentences = 8, lambda sentences: {sentences[1]: 9}
    for run in (evaluate, lambda *given, **more: predict(*given, tmp_path / "p.jsonl", **more)):
        with pytest.raises(InputError, match=r"^strict: \d+ of 15 sentences cut: .* encoder's 8 word pieces \(first: "):
            run(engine, SAMPLES, FEATURES, strict=True)
    assert not engine.batches
    assert not list(tmp_path.iterdir())


def test_cut_sentences_are_one_warning_and_in_both_reports(tmp_path):
    engine = FakeEngine()
    engine.max_tokens, engine.cut_sentences = 8, lambda sentences: {sentences[1]: 9}
    for run in (evaluate, lambda *given, **more: predict(*given, tmp_path / "p.jsonl", **more)):
        with pytest.warns(UserWarning, match="sentences cut: they are longer than the text encoder's 8") as caught:
            report = run(engine, SAMPLES, FEATURES, batch_size=1)
        assert len(caught) == 1
        (cut,) = report.to_dict()["cut"]
        assert str(report.notes[0]) == str(caught[0].message)
        assert (cut["what"], cut["total"]) == ("sentences", 15)
        assert cut["first"].endswith(", 9 word pieces")


def test_the_report_has_the_annotations_notes(tmp_path):
    video = {"duration": SAMPLES[0].duration_s, "sentences": ["a", "b"], "timestamps": [[1, 2], [2, 1]]}
    (tmp_path / "a.json").write_text(json.dumps({"v0": video}))
    report = evaluate(FakeEngine(), read_annotations(tmp_path / "a.json"), FEATURES)
    assert [(note.kind, note.what, note.count, note.total) for note in report.notes] == [
        ("left_out", "sentences", 1, 2)
    ]


def test_limit_counts_the_videos_that_have_features():
    engine = FakeEngine()
    evaluate(engine, SAMPLES, without("v0"), skip_missing=True, limit=2)
    assert engine.batches == [["v1", "v2"]]


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(InputError, match=r"^samples: expected at least one video with features, got none of 0"):
        evaluate(FakeEngine(), [], FEATURES)
    with pytest.raises(InputError, match=r"^samples: expected at least one video with features, got none of 5"):
        evaluate(FakeEngine(), SAMPLES, {}, skip_missing=True)


@pytest.mark.parametrize("name", ["limit", "batch_size", "top_k"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(InputError, match=rf"^{name}: expected a number >= 1, got 0"):
        evaluate(FakeEngine(), SAMPLES, FEATURES, **{name: 0})


def test_predictions_hold_the_moments_that_were_judged(tmp_path):
    path = tmp_path / "predictions.jsonl"
    report = evaluate(FakeEngine(), SAMPLES, FEATURES, predictions=path, top_k=7)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["qid"], line["query"], line["vid"]) for line in lines] == [
        (query_id, sentence, sample.video_id)
        for sample in SAMPLES
        for query_id, sentence in zip(sample.query_ids, sample.sentences, strict=True)
    ]
    ious = np.full((len(lines), 7), np.nan, np.float32)
    truths = [windows for sample in SAMPLES for windows in sample.moments_s]
    for row, line, windows in zip(ious, lines, truths, strict=True):
        assert list(line) == ["qid", "query", "vid", "pred_relevant_windows"]
        ranked = np.array(line["pred_relevant_windows"], np.float32)
        assert 1 <= len(ranked) <= 7
        assert (np.diff(ranked[:, 2]) <= 0).all()
        row[: len(ranked)] = best_ious(ranked[:, :2], windows)
    # The text keeps every bit, so figures from the file equal the report's.
    recall = recall_at(ious, CHARADES.recall_at, CHARADES.recall_ious, strict=False)
    assert list(report.metrics.values())[:4] == recall.ravel().tolist()
    assert report.metrics["mIoU"] == mean_iou(ious)


def test_top_k_limits_the_predictions_and_not_the_recall(tmp_path):
    path = tmp_path / "predictions.jsonl"
    report = evaluate(FakeEngine(), SAMPLES, FEATURES, predictions=path, top_k=1)
    assert {len(json.loads(line)["pred_relevant_windows"]) for line in path.open(encoding="utf-8")} == {1}
    assert report.metrics == evaluate(FakeEngine(), SAMPLES, FEATURES).metrics


def test_a_failing_engine_leaves_no_predictions(tmp_path):
    with pytest.raises(RuntimeError, match="the engine broke"):
        evaluate(FakeEngine(fail_at=2), SAMPLES, FEATURES, batch_size=2, predictions=tmp_path / "p.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_predictions_appear_only_when_they_are_whole(tmp_path):
    path, engine = tmp_path / "p.jsonl", FakeEngine()
    seen, score = [], engine.score_maps
    engine.score_maps = lambda batch: seen.append(path.exists()) or score(batch)
    evaluate(engine, SAMPLES, FEATURES, batch_size=2, predictions=path)
    assert seen == [False, False, False]
    assert list(tmp_path.iterdir()) == [path]


def test_existing_predictions_are_refused_before_any_work(tmp_path):
    path, engine = tmp_path / "p.jsonl", FakeEngine()
    path.write_text("precious")
    with pytest.raises(InputError, match=r"^predictions: .*p.jsonl already exists; expected the name of a new file$"):
        evaluate(engine, SAMPLES, FEATURES, predictions=path)
    assert path.read_text() == "precious"
    assert not engine.batches


def test_predictions_in_a_folder_that_does_not_exist_are_refused_before_any_work(tmp_path):
    engine = FakeEngine()
    with pytest.raises(InputError, match=r"^predictions: cannot write .*p.jsonl: no such folder "):
        evaluate(engine, SAMPLES, FEATURES, predictions=tmp_path / "absent" / "p.jsonl")
    assert not engine.batches


def test_progress_is_shown_on_stderr_alone(capsys):
    evaluate(FakeEngine(), SAMPLES, FEATURES, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "5/5" in err
    evaluate(FakeEngine(), SAMPLES, FEATURES)
    assert capsys.readouterr() == ("", "")


def test_a_report_states_its_protocol_with_the_threshold_that_was_used():
    mmn = evaluate(FakeEngine(), SAMPLES, FEATURES).to_dict()
    assert (mmn["protocol"], mmn["iou_test"], mmn["nms_iou"]) == ("mmn", ">=", CHARADES.nms_iou)
    tan = evaluate(FakeEngine(), SAMPLES, FEATURES, protocol="2dtan").to_dict()
    assert (tan["protocol"], tan["iou_test"], tan["nms_iou"]) == ("2dtan", ">", 0.4)
    assert tan["preset"] == "charades-sta"
    assert tan["seconds"] > 0
    assert json.loads(json.dumps(tan)) == tan


def test_the_table_prints_protocol_and_percentages():
    metrics = {"R@1,IoU@0.5": 0.47312, "R@5,IoU@0.5": 1.0, "Best_R1": 0.47312, "Best_R5": 1.0, "mIoU": 0.5}
    report = EvaluationReport(PROTOCOLS["2dtan"], "charades-sta", metrics, 1334, 3720, 2, 1.5)
    assert report.table().splitlines() == [
        "charades-sta: 1334 videos, 3720 sentences, 2 videos skipped",
        "protocol 2dtan: IoU > m counts, NMS at IoU 0.4",
        "+-------------+-------------+-------+",
        "| R@1,IoU@0.5 | R@5,IoU@0.5 | mIoU  |",
        "+-------------+-------------+-------+",
        "|    47.31    |   100.00    | 50.00 |",
        "+-------------+-------------+-------+",
    ]
