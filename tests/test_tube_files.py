"""Tubes and annotations in files: what is written is read, the published files convert, faults are one sentence."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.evaluation.tubes import read_tube_annotations
from mmn_fast.features import tube_pre_clips
from mmn_fast.features.tubes import TubesWriter, open_tubes, read_tubes, video_id_of
from mmn_fast.tubes import Tube, tube_iou
from tests.command import run_here
from tests.published_tubes import CASE, truth_of, write_annotations, write_prepared, write_raw
from tests.tolerances import check_close

QUERIES = CASE.tube_queries
RNG = np.random.default_rng(0)


def arrays(**changed: Any) -> dict[str, np.ndarray]:
    """Two tubes of 3 and 2 rows, with features of 4 and 1 rows; None leaves an array out."""
    given = {
        "lengths": np.array([3, 2]),
        "frames": np.array([5, 6, 7, 0, 1]),
        "boxes": np.tile(np.array([[1.0, 2.0, 3.0, 4.0]]), (5, 1)),
        "stream0": RNG.standard_normal((5, 2)).astype(np.float32),
        "stream0_lengths": np.array([4, 1]),
    }
    return {name: array for name, array in (given | changed).items() if array is not None}


def write_npz(path: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez(path, **content)
    return path


def write_safetensors(path: Path, content: dict[str, np.ndarray]) -> Path:
    save_file(content, path)
    return path


def write_h5(path: Path, content: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in content.items():
            file[f"v1/{name}"] = array
    return path


WRITERS: dict[str, Callable[[Path, dict[str, np.ndarray]], Path]] = {
    ".npz": write_npz,
    ".safetensors": write_safetensors,
    ".h5": write_h5,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_gives_its_tubes(tmp_path: Path, suffix: str) -> None:
    content = arrays()
    path = WRITERS[suffix](tmp_path / f"v1{suffix}", content)
    for tubes in (read_tubes(path), read_tubes(path, "v1")):
        assert [tube.frames.tolist() for tube in tubes] == [[5, 6, 7], [0, 1]]
        np.testing.assert_array_equal(tubes[1].boxes, content["boxes"][3:])
        np.testing.assert_array_equal(tubes[0].features[0], content["stream0"][:4])
        np.testing.assert_array_equal(tubes[1].features[0], content["stream0"][4:])
    with open_tubes(path if suffix == ".h5" else tmp_path) as store:
        assert list(store) == ["v1"]
        assert store.get("v2", ()) == ()
        assert len(store.get("v1")) == 2
        with pytest.raises(InputError, match=r"video 'v2': not in .*; 1 video \('v1'\)"):
            store["v2"]


def test_pre_clips_and_boxes_alone(tmp_path: Path) -> None:
    clips = RNG.standard_normal((2, 32, 6)).astype(np.float32)
    bare = arrays(stream0=None, stream0_lengths=None)
    found = read_tubes(write_npz(tmp_path / "a.npz", bare | {"pre_clips": clips}))
    np.testing.assert_array_equal(found[1].pre_clips, clips[1])
    assert found[0].features is None
    assert read_tubes(write_npz(tmp_path / "b.npz", bare))[0].pre_clips is None
    none = {"lengths": np.empty(0, int), "frames": np.empty(0, int), "boxes": np.empty((0, 4))}
    assert read_tubes(write_npz(tmp_path / "c.npz", none)) == []


def test_what_a_writer_wrote_is_read(tmp_path: Path) -> None:
    with TubesWriter(tmp_path / "tubes.h5") as writer:
        for query in QUERIES:
            writer.write(query.video_id, query.tubes)
        with pytest.raises(InputError, match="video_id: expected a name without '/', got '../x'"):
            writer.write("../x", QUERIES[0].tubes)
        mixed = [QUERIES[0].tubes[0], Tube([0], [[0, 0, 1, 1]])]
        with pytest.raises(InputError, match="expected the same kind of features in all tubes, got features of 2"):
            writer.write("mixed", mixed)
    with open_tubes(tmp_path / "tubes.h5") as store:
        assert list(store) == [query.video_id for query in QUERIES]
        for query in QUERIES:
            for tube, found in zip(query.tubes, store[query.video_id], strict=True):
                np.testing.assert_array_equal(found.frames, tube.frames)
                np.testing.assert_array_equal(found.boxes, tube.boxes)
                for own, stream in zip(tube.features, found.features, strict=True):
                    np.testing.assert_array_equal(stream, own)
    with pytest.raises(InputError, match="has been closed"):
        store[QUERIES[0].video_id]


FAULTS = [
    ({"boxes": None}, "missing boxes; it has frames, lengths"),
    ({"box": np.zeros(1)}, "unknown array 'box'; did you mean 'boxes'?"),
    ({"stream1": np.zeros((5, 2))}, "missing stream1_lengths"),
    ({"pre_clips": np.zeros((2, 3, 4))}, "expected streams or pre_clips, got both"),
    ({"lengths": np.array([3, 3])}, r"frames: expected 6 rows, the sum of lengths, got int64 \[5\]"),
    ({"lengths": np.array([5, 0])}, "lengths: expected at least one row per tube, got 0 for tube 1"),
    ({"lengths": np.array([3.0, 2.0])}, r"lengths: expected int \[K\], got float64 \[2\]"),
    ({"stream0_lengths": np.array([5])}, r"stream0_lengths: expected int \[2\], a number for each tube"),
    ({"stream0_lengths": np.array([4, 2])}, "stream0: expected 6 rows, the sum of stream0_lengths"),
    ({"frames": np.array([5, 6, 8, 0, 1])}, "tube 0: frames: expected consecutive frame numbers, got 6 in row 1 and 8"),
    ({"boxes": np.full((5, 4), np.nan)}, "tube 0: boxes: expected finite numbers"),
    ({"boxes": np.tile(np.array([[3.0, 0, 1, 1]]), (5, 1))}, "tube 0: boxes: expected x1, y1, x2, y2 with x1 <= x2"),
    ({"boxes": np.zeros((5, 5))}, r"tube 0: boxes: expected float \[3, 4\]"),
    (
        {"stream0": None, "stream0_lengths": None, "pre_clips": np.zeros((3, 4, 5))},
        r"pre_clips: expected float \[2, T, D\]",
    ),
]


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(("changed", "message"), FAULTS)
def test_a_fault_names_the_video_and_the_tube(
    tmp_path: Path, changed: dict[str, Any], message: str, suffix: str
) -> None:
    path = WRITERS[suffix](tmp_path / f"v1{suffix}", arrays(**changed))
    with pytest.raises(InputError, match=rf"^video 'v1': .*v1{suffix}: .*{message}"):
        read_tubes(path)


def test_files_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    for name, message in (
        ("none.npz", "no such file"),
        ("none.h5", "no such file"),
        ("text.npz", "truncated, damaged or no .npz file"),
        ("text.safetensors", "truncated, damaged or no .safetensors file"),
        ("text.h5", "expected an HDF5 file or a directory, got something else"),
        ("x_tubes.pkl", "got a pickle; `mmn-fast data hc-stvg` converts the published pickles"),
    ):
        if not name.startswith("none"):
            (tmp_path / name).write_text("no array")
        with pytest.raises(InputError, match=message):
            read_tubes(tmp_path / name)
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "a_tubes.pkl").write_text("")
    with pytest.raises(
        InputError, match=r"expected a file <video>\.npz .* per video, got none; `mmn-fast data hc-stvg`"
    ):
        open_tubes(tmp_path / "pickles")
    np.savez(tmp_path / "objects.npz", **arrays(frames=np.array([None] * 5, object)))
    with pytest.raises(InputError, match="holds pickled Python objects"):
        read_tubes(tmp_path / "objects.npz")
    with h5py.File(tmp_path / "videos.h5", "w") as file:
        file["v1"] = np.zeros((3, 4))
        file["v2"] = h5py.ExternalLink("other.h5", "/")
    with open_tubes(tmp_path / "videos.h5") as store:
        with pytest.raises(InputError, match="expected a group with lengths, frames, boxes and more, got a dataset"):
            store["v1"]
        with pytest.raises(InputError, match="is a link into another file, 'other.h5', which is not read"):
            store["v2"]
    with pytest.raises(InputError, match="video_id: expected the name of a video in .*, got none; 2 videos"):
        read_tubes(tmp_path / "videos.h5")


# ---- annotations ----


@pytest.mark.parametrize("version", [1, 2])
def test_annotations_of_both_versions(tmp_path: Path, version: int) -> None:
    samples = read_tube_annotations(write_annotations(tmp_path / "a.json", QUERIES, version))
    for sample, query in zip(samples, QUERIES, strict=True):
        assert (sample.file_name, sample.video_id) == (f"{query.video_id}.mp4", query.video_id)
        assert sample.sentence == query.sentences[0]
        truth = truth_of(query)
        np.testing.assert_array_equal(sample.truth[0], truth[:, 0])
        check_close(sample.truth[1], truth[:, 1:], "annotated_boxes", "fp64")


def test_queries_are_read_from_both_layouts(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"a.b.mp4": "The man stands.", "c.MP4": {"English": "He sits."}}))
    samples = read_tube_annotations(tmp_path / "q.json", truth=False)
    assert [(s.video_id, s.sentence, s.truth) for s in samples] == [
        ("a.b", "The man stands.", None),
        ("c", "He sits.", None),
    ]
    assert video_id_of("30_1.x") == "30_1.x"


def entry(**changed: Any) -> dict[str, Any]:
    given = {"st_frame": 3, "ed_frame": 4, "bbox": [[1, 2, 3, 4], [1, 2, 0.5, 4]], "English": "He sits."}
    return {name: value for name, value in (given | changed).items() if value is not ...}


ENTRIES = [
    (entry(bbox=[[1, 2, 3, 4]]), "bbox: expected a box for each of the 2 frames from 3 to 4, got 1"),
    (entry(ed_frame=1), "bbox: expected a box for each of the 0 frames from 3 to 1, got 2"),
    (entry(bbox=[]), "bbox: expected a list of at least one box"),
    (entry(bbox=[[1, 2, 3, 4], [1, 2, 3]]), r"bbox\[1\]: expected a box \[x, y, w, h\], got \[1, 2, 3\]"),
    (entry(bbox=[[1, float("nan"), 3, 4]] * 2), r"bbox\[0\]: y: expected a number .*, got nan"),
    (entry(bbox=[[1, True, 3, 4]] * 2), r"bbox\[0\]: y: expected a number .*, got True"),
    (entry(bbox=[["1", 2, 3, 4]] * 2), r"bbox\[0\]: x: expected a number .*, got '1'"),
    (entry(bbox=[[10**15, 2, 3, 4]] * 2), r"bbox\[0\]: x: expected a number .*, got 1000000000000000"),
    (entry(st_frame=1.5), "st_frame: expected an integer >= 0, got 1.5"),
    (entry(st_frame=-1), "st_frame: expected an integer >= 0, got -1"),
    (entry(English=""), "English: expected a sentence with words, got ''"),
    (entry(English=..., bbox=...), "missing English or caption, bbox; it has st_frame, ed_frame"),
    ("He sits.", r"expected an object with st_frame, bbox and English, got 'He sits.' \(`mmn-fast predict`"),
    ([1], r"expected an object with st_frame, bbox and English, got \[1\]"),
]


@pytest.mark.parametrize(("value", "message"), ENTRIES)
def test_an_entry_that_cannot_be_is_named(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"x.mp4": entry(), "y.mp4": value}))
    with pytest.raises(InputError, match=rf"^annotations: .*a\.json: video 'y\.mp4': {message}"):
        read_tube_annotations(path)


def test_boxes_of_negative_sides_overlap_nothing_as_in_the_official_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"x.mp4": entry(bbox=[[1, 2, 3, 4], [9, 2, -3, 4]])}))
    samples = read_tube_annotations(path)
    frames, boxes = samples[0].truth
    assert boxes[0].tolist() == [1, 2, 4, 6]
    assert tube_iou(frames, boxes, frames, [[1, 2, 4, 6], [6, 2, 9, 6]]) == (0.5, 1)
    (note,) = samples.notes
    assert (note.kind, note.what, note.count, note.total, note.first) == ("clamped", "boxes", 1, 2, "video 'x'")
    with pytest.raises(InputError, match="strict: 1 of 2 boxes clamped: their width or height is negative"):
        read_tube_annotations(path, strict=True)
    (tmp_path / "prepared").mkdir()
    truth = np.array([[3, 1, 2, 4, 6], [4, 9, 2, 6, 6.0]])
    (tmp_path / "prepared" / "video0.pkl").write_bytes(changed_video(gttube=truth))
    done = run_here("data", "hc-stvg", "--tubes", tmp_path / "prepared", "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "1 of 2 boxes clamped: their width or height is negative" in done.stderr
    again = read_tube_annotations(tmp_path / "out" / "annotations.json")
    np.testing.assert_array_equal(again[0].truth[1], boxes)


def test_a_model_of_videos_is_told_that_the_annotations_are_of_tubes(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "a.json", QUERIES)
    with pytest.raises(
        InputError, match="missing duration, .*; these are annotations of tubes, which go with a preset of tubes"
    ):
        read_annotations(path, "charades-sta")


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        ("[1]", "expected a JSON object of videos, got list"),
        ("{}", "expected at least one video, got none"),
        (
            json.dumps({"x.mp4": entry(), "x.avi": entry()}),
            "video 'x.avi': expected videos of different names, got 'x.mp4'",
        ),
        ('{"x.mp4": 1, "x.mp4": 2}', "key 'x.mp4' stands twice"),
        ("{", "not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_tube_annotations(path)


# ---- published files ----


def test_raw_files_convert(tmp_path: Path) -> None:
    given = write_raw(tmp_path, QUERIES)
    annotations = write_annotations(tmp_path / "train.json", QUERIES)
    done = run_here("data", "hc-stvg", *given, "--annotations", annotations, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["num_videos"], report["num_tubes"], report["num_sentences"]) == (3, 9, 3)
    with open_tubes(tmp_path / "out" / "tubes.h5") as store:
        for query in QUERIES:
            for tube, found in zip(query.tubes, store[query.video_id], strict=True):
                np.testing.assert_array_equal(found.frames, tube.frames)
                np.testing.assert_array_equal(found.boxes, tube.boxes)
                for own, stream in zip(tube.features, found.features, strict=True):
                    np.testing.assert_array_equal(stream, own)
    for sample, query in zip(read_tube_annotations(tmp_path / "out" / "annotations.json"), QUERIES, strict=True):
        check_close(sample.truth[1], truth_of(query)[:, 1:], "annotated_boxes", "fp64")


@pytest.mark.parametrize("test", [False, True])
def test_prepared_files_convert(tmp_path: Path, test: bool) -> None:
    given = write_prepared(tmp_path, QUERIES, test)
    assert run_here("data", "hc-stvg", *given, "-o", tmp_path / "out").returncode == 0
    with open_tubes(tmp_path / "out" / "tubes.h5") as store:
        for query in QUERIES:
            for tube, found in zip(query.tubes, store[query.video_id], strict=True):
                np.testing.assert_array_equal(found.pre_clips, tube_pre_clips(tube, CASE.preset, "tube"))
    samples = read_tube_annotations(tmp_path / "out" / "annotations.json", truth=None)
    assert [sample.file_name for sample in samples] == [f"{query.video_id}.mp4" for query in QUERIES]
    assert all((sample.truth is None) == test for sample in samples)


def test_what_has_no_tubes_or_no_annotation_is_left_out_and_counted(tmp_path: Path) -> None:
    given = write_raw(tmp_path, QUERIES)
    (tmp_path / "tubes" / "video1_tubes.pkl").write_bytes(pickle.dumps({0: []}))
    annotations = write_annotations(tmp_path / "train.json", QUERIES[1:])
    words = ("data", "hc-stvg", *given, "--annotations", annotations, "-o", tmp_path / "out")
    done = run_here(*words)
    assert done.returncode == 0
    assert "1 videos, 5 tubes, 1 sentences" in done.stdout
    assert "1 of 3 videos left out: the annotations do not name them (first: 'video0')" in done.stderr
    assert "1 of 2 videos left out: they have no tubes (first: 'video1')" in done.stderr
    strict = run_here(*words[:-1], tmp_path / "strict", "--strict")
    assert strict.returncode == 2
    assert "--strict: 1 of 3 videos left out" in strict.stderr
    assert not (tmp_path / "strict").exists()


class Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def changed_video(**changed: Any) -> bytes:
    content = {"vid": "video0", "tubes": [np.array([[0, 1, 2, 3, 4.0]])], "sentence": "He sits.", "tubenum": 1}
    return pickle.dumps({name: value for name, value in (content | changed).items() if value is not ...})


PUBLISHED_FAULTS = {
    "runs code": (
        lambda t: changed_video(sentence=Runs(f"touch {t / 'ran'}")),
        "it would call posix.system, and is not",
    ),
    "another video's": (
        lambda _: changed_video(vid="video7"),
        "vid: expected 'video0' as in the file's name, got 'video7'",
    ),
    "count": (lambda _: changed_video(tubenum=2), "tubenum: expected 1, the number of tubes, got 2"),
    "gap": (
        lambda _: changed_video(tubes=[np.array([[0, 1, 2, 3, 4.0], [2, 1, 2, 3, 4.0]])]),
        "tube 0: frames: expected consecutive frame numbers",
    ),
    "columns": (lambda _: changed_video(tubes=[np.zeros((1, 7))]), r"tube 0: expected float \[n, 5\] or \[n, 6\]"),
    "no tubes": (lambda _: changed_video(tubes=...), "expected a dict with 'tubes', or with a list of tubes under 0"),
    "a pair too short": (lambda _: pickle.dumps({0: [(1,)]}), r"tube 0: expected a pair \(array, score\), got a tuple"),
    "truncated": (lambda _: changed_video()[:-20], "truncated, damaged or no pickle"),
}


@pytest.mark.parametrize("name", PUBLISHED_FAULTS)
def test_a_published_file_that_cannot_be_is_one_sentence(tmp_path: Path, name: str) -> None:
    make, message = PUBLISHED_FAULTS[name]
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "video0.pkl").write_bytes(make(tmp_path))
    done = run_here("data", "hc-stvg", "--tubes", tmp_path / "prepared", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert re.search(rf"^mmn-fast: video 'video0': .*{message}", done.stderr, re.MULTILINE), done.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


def test_a_prepared_files_extension_is_kept(tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "video0.mkv.pkl").write_bytes(changed_video(vid="video0.mkv"))
    assert run_here("data", "hc-stvg", "--tubes", tmp_path / "prepared", "-o", tmp_path / "out").returncode == 0
    (sample,) = read_tube_annotations(tmp_path / "out" / "annotations.json", truth=False)
    assert (sample.file_name, sample.video_id) == ("video0.mkv", "video0")


def test_a_directory_that_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    done = run_here("data", "hc-stvg", "--tubes", tmp_path / "nowhere", "-o", tmp_path)
    assert done.returncode == 2
    assert f"--output: {tmp_path} already exists; expected the name of a new directory" in done.stderr


def test_a_small_file_that_names_a_large_row_many_times_is_refused(tmp_path: Path) -> None:
    rows = [torch.zeros(2**18)] * 1100  # a MiB each time: two tubes of them are more than 2 GiB
    torch.save({"video0": [rows, rows]}, tmp_path / "large.pth")
    (tmp_path / "prepared").mkdir()
    tube = np.array([[0, 1, 2, 3, 4.0]])
    (tmp_path / "prepared" / "video0.pkl").write_bytes(changed_video(tubes=[tube, tube], tubenum=2))
    given = ("--tubes", tmp_path / "prepared", "--features", tmp_path / "large.pth")
    done = run_here("data", "hc-stvg", *given, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "expected at most 2.15 GB of one video's features, got more" in done.stderr


def test_streams_that_do_not_fit_are_named(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "prep").mkdir()
    raw, prepared = write_raw(tmp_path / "raw", QUERIES[:1]), write_prepared(tmp_path / "prep", QUERIES[:1])

    def refused(*words: Any) -> str:
        done = run_here("data", "hc-stvg", *words, "-o", tmp_path / "out")
        assert done.returncode == 2
        assert not (tmp_path / "out").exists()
        return done.stderr

    assert "expected folders of prepared files, or files with rows, got both" in refused(*raw[:4], *prepared[4:])
    torch.save({"video0": {0: [torch.zeros(3)], 1: [torch.zeros(3)]}}, tmp_path / "two.pth")
    message = refused(*raw[:2], "--features", tmp_path / "two.pth")
    assert "expected features of 3 tubes, as many as the video has, got 2" in message
    torch.save({"video0": [[torch.zeros(3)], [], [torch.zeros(3)]]}, tmp_path / "empty.pth")
    message = refused(*raw[:2], "--features", tmp_path / "empty.pth")
    assert "tube 1: expected a list of tensors [1 + D], got a list" in message
    torch.save({"other": []}, tmp_path / "other.pth")
    assert "video 'video0': not in" in refused(*raw[:2], "--features", tmp_path / "other.pth")
    assert "No such file or directory" in refused("--tubes", tmp_path / "nowhere")
