"""Annotation files: samples read from real excerpts, and the sentences that refuse bad files."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import Sample, read_annotations

GOLDEN = Path(__file__).parent / "golden"


def written(tmp_path, content, name="annotations.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def video(**changes):
    return {"duration": 10.0, "timestamps": [[1, 2.5]], "sentences": ["person sits."]} | changes


def line(**changes):
    return {"qid": 7, "query": "A man.", "vid": "v", "duration": 10, "relevant_windows": [[0, 2]]} | changes


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_official_json_in_seconds_is_read_as_it_stands():
    samples = read_annotations(GOLDEN / "annotations_charades.json", preset="charades-sta")
    assert [sample.video_id for sample in samples] == ["3MSZA", "AMT7R"]
    first = samples[0]
    assert first.duration_s == 30.96
    assert first.sentences[0] == "person turn a light on."
    assert first.query_ids == ("3MSZA#0", "3MSZA#1", "3MSZA#2", "3MSZA#3")
    assert all(windows.dtype == np.float64 for windows in first.moments_s)
    np.testing.assert_array_equal(np.concatenate(first.moments_s), [[24.3, 30.4]] * 4)


def test_frames_become_seconds_and_the_last_frame_is_clamped_to_the_duration():
    (sample,) = read_annotations(GOLDEN / "annotations_tacos.json", preset="tacos")
    assert sample.duration_s == 19147 / 29.4
    expected = [[206 / 29.4, 503 / 29.4], [513 / 29.4, 624 / 29.4], [19055 / 29.4, 19147 / 29.4]]
    np.testing.assert_array_equal(np.concatenate(sample.moments_s)[:3], expected)


def test_frames_are_recognised_without_a_preset():
    (by_content,) = read_annotations(GOLDEN / "annotations_tacos.json")
    (by_preset,) = read_annotations(GOLDEN / "annotations_tacos.json", preset="tacos")
    assert by_content.duration_s == by_preset.duration_s
    np.testing.assert_array_equal(by_content.moments_s, by_preset.moments_s)


def test_sentences_keep_their_leading_space():
    (sample,) = read_annotations(GOLDEN / "annotations_tacos.json")
    assert sample.sentences[3] == " The person washes her hands."


def test_windows_that_do_not_start_before_their_end_are_dropped_and_counted_once(caplog):
    with caplog.at_level(logging.WARNING, logger="mmn_fast"):
        samples = read_annotations(GOLDEN / "annotations_activitynet.json")
    assert [len(sample.sentences) for sample in samples] == [3, 9, 3]
    # A dropped entry does not rename later ones: a sentence keeps its name whatever is dropped before it.
    assert samples[0].query_ids == ("v_N7ppHQNikv8#0", "v_N7ppHQNikv8#1", "v_N7ppHQNikv8#3")
    message, *_ = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    total = sum(len(sample.sentences) for sample in samples) + 2
    assert f"2 of {total} sentences left out: the start is not before the end, as the official" in message
    assert [(note.kind, note.count) for note in samples.notes if note.what == "sentences"] == [("left_out", 2)]


def test_a_file_without_defects_logs_nothing(tmp_path, caplog):
    assert read_annotations(written(tmp_path, {"a": video()})).notes == ()
    assert not caplog.records


def test_windows_beyond_the_video_are_clamped_and_counted(tmp_path, caplog):
    content = {"a": {"duration": 10.0, "timestamps": [[1, 12], [11, 12], [2, 3]], "sentences": ["b", "c", "d"]}}
    notes = read_annotations(written(tmp_path, content)).notes
    assert [(note.kind, note.what, note.count, note.total) for note in notes] == [("clamped", "windows", 1, 3)] * 2
    assert "first: video 'a', sentence 'b', window [1, 12])" in str(notes[0])
    assert "counts them as missed" in str(notes[1])
    assert len(caplog.records) == 2


def test_times_are_clamped_to_the_video(tmp_path):
    path = written(tmp_path, {"v": video(timestamps=[[-1, 11]])})
    np.testing.assert_array_equal(read_annotations(path)[0].moments_s, [np.array([[0, 10]], np.float32)])


def test_a_video_without_a_sentence_left_is_dropped(tmp_path, caplog):
    empty = video(timestamps=[], sentences=[])
    path = written(tmp_path, {"a": video(timestamps=[[3, 3]]), "b": video(), "c": empty})
    assert [sample.video_id for sample in read_annotations(path)] == ["b"]
    assert "2 of 3 videos left out: no sentence of theirs remains (first: video 'a')" in caplog.text


@pytest.mark.parametrize(
    "durations",
    [
        {"3MSZA": 30.96, "AMT7R": 30.08, "other": 1},
        GOLDEN / "annotations_charades.json",
        str(GOLDEN / "annotations_charades.json"),
    ],
)
def test_charades_text_reads_like_the_json(durations):
    from_text = read_annotations(GOLDEN / "annotations_charades_sta.txt", durations=durations)
    from_json = read_annotations(GOLDEN / "annotations_charades.json")
    for ours, theirs in zip(from_text, from_json, strict=True):
        assert (ours.video_id, ours.duration_s, ours.sentences) == (
            theirs.video_id,
            theirs.duration_s,
            theirs.sentences,
        )
        assert ours.query_ids == theirs.query_ids
        np.testing.assert_array_equal(ours.moments_s, theirs.moments_s)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Charades_v1_test.csv", 'id,subject,script,length\n3MSZA,X1,"turns, sits",30.96\nAMT7R,X2,"a\nb",30.08\n'),
        ("seconds.json", '{"3MSZA": 30.96, "AMT7R": 30.08}'),
        ("frames.json", '{"3MSZA": {"fps": 25, "num_frames": 774}, "AMT7R": {"fps": 25, "num_frames": 752}}'),
    ],
)
def test_durations_are_read_from_every_companion_file(tmp_path, name, content):
    durations = written(tmp_path, content, name)
    samples = read_annotations(GOLDEN / "annotations_charades_sta.txt", durations=durations)
    assert [sample.duration_s for sample in samples] == [30.96, 30.08]


def test_charades_text_keeps_the_sentence_after_the_first_separator_and_reads_windows_line_ends(tmp_path):
    path = written(tmp_path, "\ufeffV 0.0 1.5## a##b.\r\n\r\nV 2 3##c.\r\n", "sta.txt")
    (sample,) = read_annotations(path, durations={"V": 4})
    assert sample.sentences == (" a##b.", "c.")


def test_json_lines_are_grouped_by_video_and_keep_every_window(tmp_path):
    records = [
        line(qid=1, vid="a", relevant_windows=[[0, 2], [4, 12], [5, 5]]),
        line(qid="x", vid="b", query="two\u2028lines"),
        line(qid=3, vid="a"),
    ]
    path = written(tmp_path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    a, b = read_annotations(path)
    assert a.query_ids == (1, 3)
    assert b.query_ids == ("x",)
    assert b.sentences == ("two\u2028lines",)
    np.testing.assert_array_equal(a.moments_s[0], np.array([[0, 2], [4, 10]], np.float32))
    np.testing.assert_array_equal(a.moments_s[1], np.array([[0, 2]], np.float32))


def test_a_single_json_line_is_no_json_of_videos(tmp_path):
    (sample,) = read_annotations(written(tmp_path, line()))
    assert sample.query_ids == (7,)


def test_json_lines_without_a_window_are_dropped(tmp_path, caplog):
    path = written(tmp_path, lines(line(qid=1, relevant_windows=[]), line(qid=2)))
    assert read_annotations(path)[0].query_ids == (2,)
    assert "1 of 2 sentences left out: they have no window (first: video 'v', sentence 'A man.')" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ('{"v": ', r"not JSON \(Expecting value at line 1, column 7\)"),
        ('{\n "v": 1,\n}', r"not JSON \(.* at line [23], column \d+\)"),
        ("[1, 2]", r"expected a JSON object of videos, Charades-STA .*; it begins with '\[1, 2\]'"),
        ("version https://git-lfs", "it begins with 'version https://git-lfs'"),
        ({}, "no video with a sentence and a window in it"),
        ({"v": video(timestamps=[[2, 1]])}, "no video with a sentence and a window in it"),
        ({"v": [1]}, r"video 'v': expected an object with duration, timestamps, sentences, got list"),
        ({"v": {"duration": 1, "sentences": []}}, "video 'v': missing timestamps; it has duration, sentences"),
        ({"v": {}}, "video 'v': missing duration, timestamps, sentences; it has nothing"),
        (
            {"a": video(), "b": video(sentences=["x", "y"])},
            "video 'b': expected as many timestamps as sentences, got 1 timestamps and 2 sentences",
        ),
        ({"v": video(timestamps="1 2")}, "video 'v': timestamps: expected a list, got str"),
        ({"v": video(duration=0)}, r"video 'v': duration: expected a number > 0 and <= 1e\+09, got 0"),
        ({"v": video(duration="10")}, r"video 'v': duration: expected a number > 0 and <= 1e\+09, got '10'"),
        ({"v": video(duration=True)}, r"video 'v': duration: expected a number > 0 and <= 1e\+09, got True"),
        ({"v": video(duration=10**400)}, "expected integers of 64 bits, got one of 401 digits"),
        (json.dumps({"v": video(duration=0)}).replace("0", "1e400", 1), r"duration: expected a number > 0 .*, got inf"),
        ({"v": video(duration=1e10)}, r"duration: expected a number > 0 and <= 1e\+09, got 10000000000.0"),
        ({"v": video(duration=float("nan"))}, r"duration: expected a number > 0 and <= 1e\+09, got nan"),
        ({"v": video(fps=1e-9, num_frames=9)}, r"num_frames / fps: expected a number > 0 and <= 1e\+09, got 90{8}"),
        ({"v": video(fps=True, num_frames=9)}, "fps: expected a number > 0 .*, got True"),
        ({"v": video(timestamps=[[1, 1e30]])}, r"window \[1, 1e\+30\]: expected a number .* got 1e\+30"),
        ({"v": video(timestamps=[[True, 2]])}, r"window \[True, 2\]: expected a number .* got True"),
        ({"v": video(timestamps=[[[1], 2]])}, r"window \[\[1\], 2\]: expected a number .* got \[1\]"),
        ({"v": video(timestamps=[["1", 2]])}, r"window \['1', 2\]: expected a number .* got '1'"),
        ({"v": video(sentences=["a \ud800"])}, "entry 0: sentence: expected text without halves of surrogate pairs"),
        ({"v": video(sentences=["a " * 100_000])}, "entry 0: sentence: expected text of 1 to 100000 characters"),
        ({"": video()}, "video '': name: expected text of 1 to 4096 characters"),
        (f'{{"v": {json.dumps(video())}, "v": {json.dumps(video())}}}', "key 'v' stands twice in one object"),
        ('{"v": {"duration": 3, "duration": 4}}', "key 'duration' stands twice in one object"),
        ('{"v": ' + "[" * 100_000, "expected at most 32 levels of nesting, got more"),
        ('{"v": ' + "[" * 40 + "]" * 40 + "}", "expected at most 32 levels of nesting, got more"),
        ('{"v": ' + "9" * 5000 + "}", "expected integers of 64 bits, got one of 5000 digits"),
        (lines(line(), line(qid=8)) + '{"qid": 1, "qid": 2}', "line 3: key 'qid' stands twice in one object"),
        (
            lines(line(), line(qid=8)) + '{"a":' + "[" * 100_000,
            "line 3: expected at most 32 levels of nesting, got more",
        ),
        (
            {"v": video(timestamps=[[1, 2, 3]])},
            r"video 'v', entry 0: expected a window \[start, end\], got \[1, 2, 3\]",
        ),
        ({"v": video(timestamps=[[1, None]])}, r"video 'v', entry 0: window \[1, None\]: .* number .* got None"),
        ({"v": video(timestamps=[[1, float("nan")]])}, r"video 'v', entry 0: window \[1, nan\]: .* number .* got nan"),
        ({"v": video(sentences=[""])}, "video 'v', entry 0: expected a sentence with words, got ''"),
        ({"v": video(sentences=[3])}, "video 'v', entry 0: expected a sentence with words, got 3"),
        ({"v": video(fps=25, num_frames=-1)}, "video 'v': num_frames: expected a number > 0 .*, got -1"),
        (lines(line(), line(qid=8))[:-9], r"line 2: not JSON \(.* at column \d+\)"),
        (lines(line(), [1]), "line 2: expected an object with qid, query, vid, duration, relevant_windows, got list"),
        (lines(line(), {"qid": 1}), "line 2: missing query, vid, duration, relevant_windows; it has qid"),
        (lines(line(), line()), "line 2: qid 7 is taken by line 1"),
        (lines(line(qid=1.5)), "line 1: qid: expected an integer or a string, got 1.5"),
        (lines(line(vid=3)), "line 1: vid: expected text of 1 to 4096 characters, got 3"),
        (lines(line(), line(qid=8, duration=11)), "line 2: duration: expected 10.0 as in earlier lines of 'v', got 11"),
        (lines(line(relevant_windows=3)), "line 1: relevant_windows: expected a list, got int"),
        (lines(line(relevant_windows=[[1]])), r"line 1: expected a window \[start, end\], got \[1\]"),
    ],
)
def test_read_annotations_names_what_is_wrong_and_where(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=message) as refusal:
        read_annotations(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("V 1##a.", "line 1: expected 'VIDEO start end##sentence', got 'V 1##a.'"),
        ("V 1 2##a.\n\nV 1 2 b.", "line 3: expected 'VIDEO start end##sentence', got 'V 1 2 b.'"),
        ("V 1 x##a.", r"line 1: expected start and end as numbers, got \['1', 'x'\]"),
        ("V 1 nan##a.", "line 1: .*expected a number .*, got nan"),
        ("V 1 2##", "line 1: expected a sentence with words, got ''"),
        ("V 1 2##a.\nW 1 2##a.\nX 1 2##a.", "lacks 2 of the 3 videos of .*sta.txt: 'W', 'X'$"),
    ],
)
def test_charades_text_names_the_bad_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_annotations(written(tmp_path, content, "sta.txt"), durations={"V": 9})


def test_charades_text_without_durations_is_refused():
    with pytest.raises(
        InputError, match=r"^durations: .*annotations_charades_sta.txt is Charades-STA text, .* nothing$"
    ):
        read_annotations(GOLDEN / "annotations_charades_sta.txt")


def test_durations_beside_a_file_that_states_them_are_refused():
    with pytest.raises(InputError, match=r"^durations: only Charades-STA text takes them"):
        read_annotations(GOLDEN / "annotations_charades.json", durations={})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,seconds\nV,3\n", "expected a JSON object or a CSV with the columns id and length"),
        ("id,length\nV,long\n", "video 'V': expected a length in seconds, got 'long'"),
        ("id,length\nV\n", "video 'V': expected a number > 0 .*, got None"),
        ('{"V": ', "not JSON"),
        ('{"V": 0}', "video 'V': expected a number > 0 .*, got 0"),
        ('{"V": {"length": 3}}', "video 'V': missing duration; it has length"),
    ],
)
def test_bad_durations_are_named(tmp_path, content, message):
    durations = written(tmp_path, content, "durations")
    with pytest.raises(InputError, match=message) as refusal:
        read_annotations(written(tmp_path, "V 1 2##a.", "sta.txt"), durations=durations)
    assert str(refusal.value).startswith(f"durations: {durations}")


def test_a_preset_in_frames_demands_the_frame_fields():
    with pytest.raises(InputError, match=r"video '3MSZA': missing fps, num_frames; it has duration, timestamps"):
        read_annotations(GOLDEN / "annotations_charades.json", preset="tacos")


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="preset"):
        read_annotations(GOLDEN / "annotations_charades.json", preset="charade")


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^annotations: .*absent.json: No such file"):
        read_annotations(tmp_path / "absent.json")
    binary = tmp_path / "features.h5"
    binary.write_bytes(b"\x89HDF\r\n\x1a\n\xff")
    with pytest.raises(InputError, match=r"features.h5: expected UTF-8 text, got other bytes"):
        read_annotations(binary)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"v": video(timestamps=[[3, 3]])}, r"video 'v', entry 0: expected start < end, got \[3, 3\]"),
        (
            {"v": video(timestamps=[[-1, 3]])},
            r"entry 0: expected times from 0 to the duration, 10.0 s, got -1.0 to 3.0 s",
        ),
        ({"v": video(timestamps=[[1, 10.01]])}, r"entry 0: expected times from 0 to the .* 10.0 s, got 1.0 to 10.01 s"),
        (lines(line(relevant_windows=[])), "line 1: expected at least one window, got none"),
        (lines(line(relevant_windows=[[0, 2], [2, 1]])), r"line 1: expected start < end, got \[2, 1\]"),
    ],
)
def test_strict_refuses_entries_that_are_otherwise_repaired(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_annotations(written(tmp_path, content), strict=True)


def test_strict_accepts_a_file_without_defects():
    assert len(read_annotations(GOLDEN / "annotations_charades.json", strict=True)) == 2


def test_a_sample_checks_its_lengths_and_its_windows():
    window = np.zeros((1, 2), np.float32)
    with pytest.raises(InputError, match=r"sample 'v': expected as many sentences as .* got 2, 1 and 1"):
        Sample("v", 1.0, ("a", "b"), (window,), (0,))
    with pytest.raises(
        InputError, match=r"sample 'v': moments_s\[0\]: expected float64 \[G, 2\], got float32 \[1, 1\]"
    ):
        Sample("v", 1.0, ("a",), (window[:, :1],), (0,))
    with pytest.raises(InputError, match=r"got int64 \[1, 2\]"):
        Sample("v", 1.0, ("a",), (window.astype(np.int64),), (0,))


def test_reading_annotations_does_not_import_torch():
    check = "import sys, mmn_fast.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
