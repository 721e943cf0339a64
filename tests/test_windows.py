"""Long videos are cut into windows of whole rows; every backend grounds them, and embeddings keep them."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mmn_fast
from benchmarks import window_recall
from mmn_fast import embeddings
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.backends.registry import backend_class
from mmn_fast.checkpoint import save_model
from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.presets import PRESETS
from mmn_fast.types import Moment, Query, Video
from mmn_fast.windows import Windows, checked_windows, cut, cut_video
from mmn_fast.windows.grounding import inside_a_bar, shown
from mmn_fast.windows.merge import Found, merged
from tests.command import run_here
from tests.tiny_model import tiny_model
from tests.tolerances import check_close

SENTENCES = ["a dog jumps", "the dog sleeps", "a dog"]
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    on_cpu = {name: backend_class(name)(model, Settings("cpu")) for name in ("native", "torch")}
    return {
        **{name: Engine(model, backend) for name, backend in on_cpu.items()},
        "twins": Engine(model, NativeGpuBackend(model, Settings("cpu", "fp32"))),
    }


def video(num_rows: int = 300, duration_s: float = 150.0, seed: int = 0) -> Video:
    width = 12
    return Video(np.random.default_rng(seed).standard_normal((num_rows, width)).astype(np.float32), duration_s, "long")


def test_windows_cover_the_video_and_end_with_it() -> None:
    for num_rows in (1, 2, 3, 10, 101, 1000):
        for duration_s in (0.7, 33.1, 7200.0):
            for window_s in (duration_s / num_rows, duration_s / 7, duration_s / 2, duration_s, 2 * duration_s):
                for overlap in (0.0, 0.25, 0.5, 0.99):
                    check_cut(num_rows, duration_s, Windows(window_s, overlap))


def check_cut(num_rows: int, duration_s: float, windows: Windows) -> None:
    row_s = duration_s / num_rows
    if windows.window_s < row_s:
        return
    found = cut(num_rows, duration_s, windows, "it")
    length = found[0].last
    assert (found[0].first, found[-1].last) == (0, num_rows)
    if len(found) == 1:
        assert found == [(0, num_rows, 0.0, duration_s)]
        return
    assert abs(length * row_s - windows.window_s) <= 0.5 * row_s * (1 + 1e-9)
    for one, after in pairwise(found):
        assert after.last - after.first == length
        assert one.first < after.first <= one.last
        assert after.first - one.first <= max(1, round(length * (1 - windows.overlap)))
        assert after.start_s == pytest.approx(after.first * row_s)
        assert after.duration_s == pytest.approx(length * row_s)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"window_s": 0}, "window_s: expected a finite number > 0, got 0"),
        ({"window_s": -3.0}, "window_s: expected a finite number > 0, got -3.0"),
        ({"window_s": NAN}, "window_s: expected a finite number > 0, got nan"),
        ({"window_s": INF}, "window_s: expected a finite number > 0, got inf"),
        ({"window_s": True}, "window_s: expected a finite number > 0, got True"),
        ({"window_s": "30"}, "window_s: expected a finite number > 0, got '30'"),
        ({"window_s": 30, "overlap": 1}, "overlap: expected a number >= 0 and < 1, got 1"),
        ({"window_s": 30, "overlap": -0.1}, "overlap: expected a number >= 0 and < 1, got -0.1"),
        ({"window_s": 30, "overlap": NAN}, "overlap: expected a number >= 0 and < 1, got nan"),
        ({"overlap": 0.5}, "overlap: expected none without window_s, got 0.5"),
        ({"window_s": 0.4}, "window_s: expected at least one feature row of video 'long', 0.5 s, got 0.4"),
    ],
)
def test_bad_windows_are_refused(given: dict[str, Any], sentence: str, engines: dict[str, Engine]) -> None:
    for call in (
        lambda e: e.ground([Query(video(), SENTENCES)], **given),
        lambda e: e.encode_video([video()], **given),
    ):
        with pytest.raises(InputError, match=f"^{sentence}$"):
            call(engines["native"])


def test_tubes_are_not_cut() -> None:
    with pytest.raises(InputError, match="window_s: expected none with preset 'hc-stvg', which is of tubes"):
        checked_windows(30.0, None, PRESETS["hc-stvg"])


def test_a_bad_video_is_named_before_anything_is_encoded(engines: dict[str, Engine]) -> None:
    bad = video()
    bad.features[17, 3] = NAN
    with pytest.raises(InputError, match=r"^batch\[1\].video.features: .* got nan in row 17$"):
        engines["native"].ground([Query(video(), SENTENCES), Query(bad, ["a dog"])], window_s=30)


@pytest.mark.parametrize("name", ["native", "torch", "twins"])
def test_a_video_within_the_window_stays_whole_to_the_bit(name: str, engines: dict[str, Engine]) -> None:
    engine, batch = engines[name], [Query(video(), SENTENCES), Query(video(40, 20.0, 1), SENTENCES[:1])]
    assert engine.ground(batch, 4, window_s=150) == engine.ground(batch, 4)
    plain, windowed = engine.encode_video([video()]), engine.encode_video([video()], window_s=150.0, overlap=0.1)
    assert windowed.windows == ()
    assert np.array_equal(plain.contrastive, windowed.contrastive)
    assert np.array_equal(plain.iou, windowed.iou)


def by_hand(engine: Engine, whole: Video, sentences: list[str], top_k: int, **given: float) -> list[list[Moment]]:
    """Every window grounded as a video of its own, its moments moved, and merged in plain Python."""
    answers = []
    pieces = cut_video(whole, engine.preset, **given)
    found = engine.ground([Query(piece.video, sentences) for piece in pieces], top_k=10**6)
    for sentence in range(len(sentences)):
        moved = [
            (piece.start_s + m.start_s, piece.start_s + m.end_s, m.score, number)
            for number, (piece, moments) in enumerate(zip(pieces, found, strict=True))
            for m in moments[sentence]
        ]
        kept: list[tuple[float, float, float, int]] = []
        for one in sorted(moved, key=lambda m: -m[2]):
            overlaps = [(min(one[1], k[1]) - max(one[0], k[0])) / (max(one[1], k[1]) - min(one[0], k[0])) for k in kept]
            others = zip(overlaps, kept, strict=True)
            if not any(iou > engine.preset.nms_iou and k[3] != one[3] for iou, k in others):
                kept.append(one)
        answers.append([Moment(s, min(e, whole.duration_s), score) for s, e, score, _ in kept[:top_k]])
    return answers


@pytest.mark.parametrize("name", ["native", "torch", "twins"])
def test_moments_are_those_of_the_windows_merged(name: str, engines: dict[str, Engine]) -> None:
    engine = engines[name]
    for top_k, given in ((1, {"window_s": 16.0}), (7, {"window_s": 40.0, "overlap": 0.3}), (500, {"window_s": 16.0})):
        (found,) = engine.ground([Query(video(), SENTENCES)], top_k, **given)
        expected = by_hand(engine, video(), SENTENCES, top_k, **given)
        if name == "twins":  # embeddings go through the host here
            check_near(found, expected)
        else:
            assert found == expected
    assert len(found[0]) > engine._plan.num_proposals / 2
    assert max(moment.end_s for moment in found[0]) <= 150.0


def check_near(found: list[list[Moment]], expected: list[list[Moment]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert [(m.start_s, m.end_s) for m in ours] == [(m.start_s, m.end_s) for m in theirs]
        check_close([m.score for m in ours], [m.score for m in theirs], "windows_through_the_host")


@pytest.mark.parametrize("name", ["native", "torch", "twins"])
def test_embeddings_keep_the_windows(name: str, engines: dict[str, Engine], tmp_path: Path) -> None:
    engine, given = engines[name], {"window_s": 31.0, "overlap": 0.4}
    short, long = video(40, 20.0, 1), video()
    found = engine.encode_video([long, short, long], **given)
    text = engine.encode_text(SENTENCES)
    at_once = engine.ground([Query(one, SENTENCES) for one in (long, short, long)], 5, **given)
    grounded = engine.score(found, text)
    assert (grounded[0], grounded[2]) == (at_once[0], at_once[2])
    check_near(grounded[1], at_once[1])  # a whole video's pre-clips are made on a GPU if it is grounded at once
    assert name == "twins" or grounded == at_once
    count = len(found.windows[0])
    assert (len(found), len(found.contrastive), found.windows[1]) == (3, 2 * count + 1, ((0.0, 20.0),))
    assert found.windows[0][-1][0] + found.windows[0][-1][1] == pytest.approx(150.0)
    found.save(tmp_path / "videos.safetensors")
    read = VideoEmbeddings.load(tmp_path / "videos.safetensors")
    assert (read.windows, read.durations_s, read.video_ids) == (found.windows, found.durations_s, found.video_ids)
    assert engine.score(read, text) == grounded
    assert engine.score(read[[2, 1]], text) == grounded[:0:-1]
    assert [engine.score(one, text)[0] for one in read] == grounded
    plain = engine.encode_video([short])
    assert plain.windows == (plain + plain).windows == ()
    assert (plain + read[:1]).windows == (((0.0, 20.0),), found.windows[0])
    assert engine.score(plain + read[:1], text) == [grounded[1], grounded[0]]


def test_files_without_windows_are_as_before(engines: dict[str, Engine], tmp_path: Path) -> None:
    engines["native"].encode_video([video()]).save(tmp_path / "plain.safetensors")
    assert b'"windows"' not in (tmp_path / "plain.safetensors").read_bytes()
    assert VideoEmbeddings.load(tmp_path / "plain.safetensors").spans == (((0.0, 150.0),),)


@pytest.mark.parametrize(
    ("windows", "sentence"),
    [
        ("[[[0, 50], [100, 50]]]", "windows: expected as many windows as rows of the arrays, 3, got 2"),
        ("[[[0, 50], [50, 50], [100, -1]]]", r"windows\[0\]\[2\]\[1\]: expected a finite number >= 0, got -1"),
        ("[[[0, 50], [50, 50], [NaN, 50]]]", r"windows\[0\]\[2\]\[0\]: expected a finite number >= 0, got nan"),
        ("[[], [[0, 50], [50, 50], [100, 50]]]", r"windows\[0\]: expected a list of 1 to"),
        ("{}", "windows: expected a list of 1 to"),
        ("[[[0, 50]], [[50, 50], [100, 50]]]", "durations_s: expected a list of 2 values"),
    ],
)
def test_damaged_windows_are_refused(windows: str, sentence: str, engines: dict[str, Engine], tmp_path: Path) -> None:
    path = tmp_path / "videos.safetensors"
    found = engines["native"].encode_video([video()], window_s=50, overlap=0)
    found.save(path)
    texts = {"durations_s": "[150.0]", "video_ids": '["long"]', "windows": windows}
    meta = {"kind": found._kind, "fingerprint": found.fingerprint, **texts}
    arrays = load_file(path)
    save_file(arrays, path, metadata=meta | {"sha256": embeddings._checksum(arrays, meta)})
    with pytest.raises(InputError, match=sentence):
        VideoEmbeddings.load(path)


def test_a_batch_of_any_videos_gives_each_its_own_moments(engines: dict[str, Engine]) -> None:
    engine, long, short = engines["native"], video(), video(40, 20.0, 1)
    queries = [Query(short, SENTENCES), Query(long, SENTENCES[:1]), Query(long, []), Query(long, SENTENCES[1:])]
    together = engine.ground([*queries, Query(video(200, 90.0, 2), SENTENCES)], 3, window_s=30)
    assert together[2] == []
    assert together[1] + together[3] == engine.ground([Query(long, SENTENCES)], 3, window_s=30)[0]
    assert together[0] == engine.ground([Query(short, SENTENCES)], 3)[0]
    assert together[4] == engine.ground([Query(video(200, 90.0, 2), SENTENCES)], 3, window_s=30)[0]
    assert engine.ground([], window_s=30) == []
    assert len(engine.encode_video([], window_s=30)) == 0


def test_suppression_is_between_windows_only() -> None:
    def found(*rows: tuple[float, float, float]) -> Found:
        array = np.array(rows)
        return Found(array[:, :2], array[:, 2].astype(np.float32))

    first = found((0, 10, 0.9), (0, 9, 0.5), (20, 30, 0.4))  # the first two overlap: their window let them pass
    second = found((19, 30, 0.6), (1, 10, 0.8), (40, 55, 0.4))
    moments = [(m.start_s, m.end_s) for m in merged([first, second], 50.0, 0.5, 10)]
    assert moments == [(0, 10), (19, 30), (0, 9), (40, 50.0)]
    equal = [found((0, 5, 0.5)), found((20, 25, 0.5)), found((10, 15, 0.5))]
    assert [m.start_s for m in merged(equal, 50.0, 0.5, 2)] == [0, 20]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(engines: dict[str, Engine]) -> None:
    """Peaks beside the features of a video and of one five times as long differ by the moments of the windows alone."""
    engine, peaks, minutes = engines["native"], [], (20, 100)
    for length in minutes:
        long = video(60 * length, 60.0 * length)
        engine.ground([Query(long, SENTENCES)], window_s=600)  # what is made once
        tracemalloc.start()
        (found,) = engine.ground([Query(long, SENTENCES)], window_s=32)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert all(len(moments) == 5 for moments in found)
    more = (minutes[1] - minutes[0]) * 60 // 16
    moments = len(SENTENCES) * (20 * engine._plan.num_proposals + 700)  # numbers, and the arrays that hold them
    assert peaks[1] - peaks[0] < more * moments
    embeddings_of_a_window = 8 * engine._plan.num_proposals * engine.preset.joint_size
    assert moments < embeddings_of_a_window


@pytest.mark.slow
def test_an_export_grounds_in_windows_too(exports: Callable[..., Path]) -> None:
    engine = mmn_fast.load(exports("demo"), backend="onnx", threads=1)
    long = Video(np.random.default_rng(0).random((120, 357), np.float32), 60.0)
    (found,) = engine.ground([Query(long, SENTENCES)], 3, window_s=16)
    assert found == by_hand(engine, long, SENTENCES, 3, window_s=16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    return save_model(tiny_model(root), root / "model")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_eval_and_predict_ground_long_videos_in_windows(saved: Path, task: dict[str, Path], tmp_path: Path) -> None:
    """The task's videos last 16 s; one is made to last 7.9 s and stays whole."""
    annotated = json.loads(task["val_annotations"].read_text())
    annotated["val3"]["duration"] = 7.9
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps(annotated))
    common = ("--model", saved, "--annotations", annotations, "--features", task["features"], "--threads", 1)
    cut_at = ("--window", 8, "--overlap", 0.25)
    done = run_here("eval", *common, *cut_at, "--predictions", tmp_path / "eval.jsonl", "--protocol", "qvh")
    assert done.returncode == 0, done.stderr
    assert "videos above 8 s in windows that overlap by 0.25" in done.stdout
    for name, extra in (("cut", cut_at), ("whole", ())):
        done = run_here("predict", *common, *extra, "-o", tmp_path / f"{name}.jsonl")
        assert done.returncode == 0, done.stderr
    found, whole = lines(tmp_path / "cut.jsonl"), lines(tmp_path / "whole.jsonl")
    assert found == lines(tmp_path / "eval.jsonl")
    engine, store = mmn_fast.load(saved, threads=1), task["features"]
    for line, uncut in zip(found, whole, strict=True):
        assert (line == uncut) == (line["vid"] == "val3")
        video = Video(np.load(store / f"{line['vid']}.npy"), annotated[line["vid"]]["duration"])
        ((moments,),) = engine.ground([Query(video, [line["query"]])], 10, window_s=8, overlap=0.25)
        expected = [[m.start_s, m.end_s, m.score] for m in moments]
        check_close(line["pred_relevant_windows"], expected, "printed_scores")
    report = json.loads(run_here("eval", *common, *cut_at, "--json").stdout)
    assert (report["window_s"], report["overlap"]) == (8, 0.25)
    assert "window_s" not in json.loads(run_here("eval", *common, "--json").stdout)


def test_the_commands_refuse_what_windows_do_not_do(saved: Path, task: dict[str, Path], tmp_path: Path) -> None:
    split = ("--model", saved, "--annotations", task["val_annotations"], "--features", task["features"])
    one = ("--model", saved, "--features", task["features"] / "val0.npy", "--duration", 16, "--query", "a dog")
    for arguments, sentence in (
        (("eval", *split, "--window", 8, "--protocol", "2dtan"), "--window: expected none with protocol '2dtan'"),
        (("predict", *split, "-o", tmp_path / "out", "--overlap", 0.3), "--overlap: expected none without --window"),
        (("ground", *one, "--window", 0), "--window: expected a finite number > 0, got 0.0"),
        (("ground", *one, "--window", 9, "--overlap", 1.5), "--overlap: expected a number >= 0 and < 1, got 1.5"),
        (("ground", *one, "--window", 0.5), "--window: expected at least one feature row of video '"),
        (("ground", "--tubes", "t.h5", "--query", "a", "--window", 5), "--window: expected none with --tubes, whose"),
    ):
        done = run_here(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"mmn-fast: {sentence}"), done.stderr


def test_ground_writes_a_page_of_timelines(saved: Path, task: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    features = ("--features", task["features"] / "val0.npy", "--duration", 16, "--query", "a dog", "--html", page)
    done = run_here("ground", "--model", saved, *features, "--window", 8, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (len(found["results"][0]["moments"]), found["window_s"], found["overlap"]) == (5, 8.0, 0.5)
    assert "grounded in windows of 8 s" in page.read_text()


def test_one_bar_at_a_time_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown(range(3), progress=True)) == [0, 1, 2]
    assert capsys.readouterr().err
    with inside_a_bar():
        assert list(shown(range(3), progress=True)) == [0, 1, 2]
    assert list(shown(range(1), progress=True)) == [0]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_windows_find_what_is_lost_in_the_whole_video() -> None:
    """The demo model on a video of two minutes; `window_recall` prints the figures of more."""
    engine, videos = mmn_fast.load("demo", threads=1), [window_recall.draw(0, 8)]
    assert window_recall.figures(engine, videos, {})[1] < 0.2
    assert window_recall.figures(engine, videos, {"window_s": 16})[1] > 0.75
