"""Metrics, protocols and the evaluation loop."""

import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.evaluation import (
    PROTOCOLS,
    EvaluationReport,
    Protocol,
    Sample,
    evaluate,
    evaluate_maps,
    mean_iou,
    predict,
    read_annotations,
    recall_at,
)
from mmn_fast.evaluation.metrics import best_ious, get_protocol
from mmn_fast.geometry import cells_to_moments, proposal_cells, proposal_mask, temporal_iou
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import PRESETS
from mmn_fast.types import ScoreMaps

GOLDEN = Path(__file__).parent / "golden"
CASE = json.loads((GOLDEN / "losses_and_recall_5.json").read_text())
PRESET_OF = {"charades": "charades-sta", "activitynet": "activitynet-captions", "tacos": "tacos"}
CHARADES = PRESETS["charades-sta"]


def load_recipe():
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells_of(preset):
    return proposal_cells(proposal_mask(preset.num_clips, preset.pooling_counts))


def cell_index(preset, i, j):
    return int(np.flatnonzero((cells_of(preset) == (i, j)).all(1))[0])


def charades_maps(*scores):
    """One sentence's maps [1, 136] with these iou scores by cell (i, j) and 0 elsewhere; contrastive is 1."""
    iou = np.zeros((1, 136), np.float32)
    for (i, j), score in scores:
        iou[0, cell_index(CHARADES, i, j)] = score
    return np.ones_like(iou), iou


def judge(maps, moment, protocol="mmn", preset="charades-sta"):
    """Metrics of one sentence in a video of 16 s: a clip is a second."""
    contrastive, iou = maps
    return evaluate_maps(preset, [contrastive], [iou], [16.0], [np.array([moment], np.float32)], protocol)


# The official figures


@pytest.fixture(scope="module", params=CASE["datasets"])
def golden(request):
    """Rebuild a dataset's twelve videos: its name, preset, and per video duration, moments and score maps."""
    recipe, dataset = load_recipe(), request.param
    preset = PRESETS[PRESET_OF[dataset]]
    cells, side = cells_of(preset), preset.num_clips
    videos = []
    for number, video in enumerate(CASE["datasets"][dataset]["videos"]):
        moments = np.array(video["moments"], np.float32)
        grid = cells_to_moments(cells, video["duration"], side)
        iou2d = np.stack([temporal_iou(grid, moment) for moment in moments])

        shape = (len(moments), side, side)

        def noise(kind, number=number, shape=shape):
            name = f"eval.{dataset}.{kind}{number}"
            return recipe.normal(name, shape, CASE["seed"])[:, cells[:, 0], cells[:, 1]]

        contrastive = np.tanh(np.float32(0.8) * noise("c") + iou2d)
        iou = 1 / (1 + np.exp(-(noise("u") + 2 * iou2d)))
        videos.append((video["duration"], moments, contrastive, iou, iou2d))
    return dataset, preset, videos


def test_target_ious_equal_the_official_ones_bit_for_bit(golden):
    dataset, _, videos = golden
    with np.load(GOLDEN / "losses_and_recall_5.npz") as arrays:
        np.testing.assert_array_equal(videos[0][4], arrays[f"{dataset}.iou2d0"])


def test_evaluate_maps_reproduces_the_official_table(golden):
    dataset, preset, videos = golden
    durations, moments, contrastive, iou, _ = zip(*videos, strict=True)
    metrics = evaluate_maps(preset.name, contrastive, iou, durations, moments)
    official = CASE["datasets"][dataset]["recall"]
    assert list(metrics) == [*official, "mIoU"]
    for name, figure in official.items():
        # The official figures are float32 quotients.
        assert metrics[name] == pytest.approx(figure, abs=1e-6), name
    assert 0 < metrics["mIoU"] < 1
    assert all(type(value) is float for value in metrics.values())


# Protocols


@pytest.mark.parametrize(("protocol", "found"), [("mmn", 1.0), ("2dtan", 0.0)])
def test_an_iou_exactly_at_the_threshold_counts_in_mmn_and_not_in_2dtan(protocol, found):
    metrics = judge(charades_maps(((0, 0), 0.9)), [0, 2], protocol)
    assert metrics["mIoU"] == 0.5
    assert metrics["R@1,IoU@0.5"] == found
    # 7 s of 10: the quotient and the threshold 0.7 round to the same float32.
    assert judge(charades_maps(((0, 6), 0.9)), [0, 10], protocol)["R@1,IoU@0.7"] == found


def test_each_protocol_suppresses_at_its_own_iou():
    # [0, 4] and [0, 9] have IoU 4/9: one moment for 2D-TAN (0.4), two for MMN with this preset (0.5).
    maps = charades_maps(((0, 3), 0.9), ((0, 8), 0.8))
    assert judge(maps, [0, 9], "mmn")["R@5,IoU@0.7"] == 1.0
    assert judge(maps, [0, 9], "2dtan")["R@5,IoU@0.7"] == 0.0
    assert judge(maps, [0, 9], Protocol("own", strict=True, nms_iou=0.45))["R@5,IoU@0.7"] == 1.0


def test_both_protocols_keep_a_moment_exactly_at_the_nms_iou():
    # [0, 2] and [0, 5] have IoU 0.4 as float32 has it.
    maps = charades_maps(((0, 1), 0.9), ((0, 4), 0.8))
    assert judge(maps, [0, 5], Protocol("own", strict=False, nms_iou=0.4))["R@5,IoU@0.7"] == 1.0
    assert judge(maps, [0, 5], "2dtan")["R@5,IoU@0.7"] == 1.0


def test_protocol_names_are_keys_and_unknown_ones_are_refused():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {
        name: name for name in ("mmn", "2dtan", "qvh")
    }
    with pytest.raises(InputError, match=r"^protocol: expected one of mmn, 2dtan, qvh, got 'tvr'"):
        get_protocol("tvr")
    with pytest.raises(InputError, match=r"protocol 'own': nms_iou: expected 0 to 1 or None, got 40"):
        Protocol("own", strict=False, nms_iou=40)


# Metrics


def test_recall_counts_sentences_with_a_good_moment_among_the_first_n():
    ious = np.array([[0.2, 0.9], [0.6, 0.1], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(recall_at(ious, (1, 2), (0.5, 0.9), strict=False), [[1 / 3, 0], [2 / 3, 1 / 3]])
    np.testing.assert_array_equal(recall_at(ious, (1, 2), (0.5, 0.9), strict=True), [[1 / 3, 0], [2 / 3, 0]])


def test_absent_moments_never_count():
    ious = np.array([[np.nan, np.nan], [1.0, np.nan]], np.float32)
    np.testing.assert_array_equal(recall_at(ious, (1, 2), (0.0,), strict=False), [[0.5], [0.5]])
    assert mean_iou(ious) == 0.5


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3,)])
def test_metrics_refuse_arrays_without_sentences_or_moments(shape):
    for metric in (mean_iou, lambda ious: recall_at(ious, (1,), (0.5,), strict=False)):
        with pytest.raises(InputError, match=r"^ious: expected \[S, K\]"):
            metric(np.zeros(shape, np.float32))


def test_recall_refuses_an_n_beyond_the_ranked_moments():
    with pytest.raises(InputError, match=r"^counts: expected numbers from 1 to 3 \(ranked moments\), got \[1, 5\]"):
        recall_at(np.zeros((2, 3), np.float32), (1, 5), (0.5,), strict=False)


def test_the_best_of_several_windows_counts():
    moments = np.array([[0, 2], [4, 6], [7, 8]], np.float32)
    windows = np.array([[0, 4], [4, 6]], np.float32)
    np.testing.assert_array_equal(best_ious(moments, windows), np.array([0.5, 1, 0], np.float32))
    maps = charades_maps(((4, 5), 0.9))
    metrics = evaluate_maps("charades-sta", [maps[0]], [maps[1]], [16.0], [[windows]])
    assert metrics["R@1,IoU@0.7"] == 1.0


# evaluate_maps


def test_fewer_moments_than_n_are_judged_as_they_are():
    metrics = judge(charades_maps(((0, 3), 0.9), ((8, 9), 0.8)), [8, 10])
    assert (metrics["R@1,IoU@0.5"], metrics["R@5,IoU@0.5"]) == (0.0, 1.0)


def test_a_sentence_without_any_moment_counts_as_not_found():
    metrics = judge(charades_maps(), [0, 16])
    assert set(metrics.values()) == {0.0}


def test_equal_scores_rank_by_cell_order():
    # Disjoint cells, so that nothing is suppressed; (2, 2) comes before (9, 9) in row-major order.
    maps = charades_maps(((9, 9), 0.5), ((2, 2), 0.5))
    assert judge(maps, [2, 3])["R@1,IoU@0.7"] == 1.0
    assert judge(maps, [9, 10])["R@1,IoU@0.7"] == 0.0


def test_a_video_without_sentences_changes_nothing():
    contrastive, iou = charades_maps(((0, 3), 0.9))
    moments = np.array([[0, 4]], np.float32)
    alone = evaluate_maps(CHARADES, [contrastive], [iou], [16.0], [moments])
    empty = np.zeros((0, 136), np.float32)
    both = evaluate_maps(CHARADES, [empty, contrastive], [empty, iou], [5.0, 16.0], [moments[:0], moments])
    assert alone == both


def test_best_figures_exist_for_the_presets_own_n_alone():
    metrics = judge(charades_maps(((0, 3), 0.9)), [0, 4], preset="hc-stvg")
    assert list(metrics) == ["R@1,IoU@0.3", "R@1,IoU@0.5", "Best_R1", "mIoU"]


def test_evaluate_maps_names_the_wrong_shape():
    maps, moments = np.ones((2, 136), np.float32), np.array([[0, 1], [1, 2]], np.float32)
    dense = np.ones((2, 16, 16), np.float32)
    for arguments, message in (
        (
            ([dense], [maps], [9.0], [moments]),
            r"^contrastive\[0\]: expected float32 \[S, P\] = \[2, 136\] .*\[2, 16, 16\]",
        ),
        (([maps], [maps[:1]], [9.0], [moments]), r"^iou\[0\]: expected .* 'charades-sta'\), got float32 \[1, 136\]"),
        (([maps], [maps, maps], [9.0], [moments]), r"^iou: expected one entry per video, 1 as in moments_s, got 2"),
        (([maps], [maps], [], [moments]), r"^durations_s: expected one entry per video, 1 .* got 0"),
        (([maps], [maps], [0.0], [moments]), r"^durations_s\[0\]: expected a finite number > 0, got 0.0"),
        (
            ([maps], [maps], [9.0], [moments[:, :1]]),
            r"^moments_s\[0\]\[0\]: expected seconds \[2\] or \[G, 2\], got \[1\]",
        ),
        (([maps], [maps], [9.0], [[moments[:0]] * 2]), r"^moments_s\[0\]\[0\]: .* got \[0, 2\]"),
        (([], [], [], []), r"^moments_s: expected at least one sentence, got none"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_maps("charades-sta", *arguments)


# evaluate


class FakeEngine:
    """Scores that depend on the features and the sentence alone; remembers what it was asked."""

    preset = CHARADES

    def __init__(self, fail_at=None):
        self.queries = []
        self.batches = []
        self.fail_at = fail_at

    def score_maps(self, batch):
        self.queries += batch
        self.batches.append([query.video.video_id for query in batch])
        if len(self.batches) == self.fail_at:
            raise RuntimeError("the engine broke")
        return [self.maps(query) for query in batch]

    def maps(self, query):
        cells = cells_of(self.preset)
        seeds = [zlib.crc32(f"{query.video.features.sum()} {sentence}".encode()) for sentence in query.sentences]
        noise = np.stack([np.random.RandomState(seed).uniform(0, 1, (2, len(cells))) for seed in seeds])
        contrastive, iou = noise.astype(np.float32).swapaxes(0, 1)
        return ScoreMaps(contrastive, iou, fuse_scores(contrastive, iou, self.preset), cells)


def make_sample(number, sentences=3):
    rng = np.random.RandomState(number)
    starts = rng.uniform(0, 10, sentences)
    windows = tuple(np.array([[start, start + 8]], np.float32) for start in starts)
    text = tuple(f"sentence {s} of é{number}" for s in range(sentences))
    return Sample(f"v{number}", 20.0 + number, text, windows, tuple(f"v{number}#{s}" for s in range(sentences)))


SAMPLES = [make_sample(number, sentences) for number, sentences in enumerate((3, 1, 4, 2, 5))]
FEATURES = {sample.video_id: np.full((4, 8), number, np.float32) for number, sample in enumerate(SAMPLES)}


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
        """Refuses to be read more than one batch ahead of the engine."""

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
    # The text holds every bit: figures taken from the file are the report's.
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


# EvaluationReport


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
