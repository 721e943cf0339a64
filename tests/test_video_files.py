"""From a video file to moments: `Video.open`, `ground --video`, and the writer of the demo's own files."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest

import mmn_fast
from mmn_fast.checkpoint import load_model, save_model
from mmn_fast.demo.shapes import ShapesVideo, extractor, make_video, save_video, write_dataset
from mmn_fast.errors import InputError, WriteError
from mmn_fast.features import open_features
from mmn_fast.features.extractors.registry import make_extractor
from mmn_fast.media import open_video, probe
from mmn_fast.media.writing import write_video
from tests.command import run_here
from tests.tiny_model import tiny_model
from tests.tolerances import check_close


@pytest.fixture(scope="module")
def drawn() -> ShapesVideo:
    return make_video("test", 0, 0)


@pytest.fixture(scope="module")
def clip(drawn: ShapesVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    save_video(drawn.frames(), path)
    return path


def test_a_written_video_has_the_frames_at_their_times(clip: Path, drawn: ShapesVideo) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.frame_rate, info.codec, info.pixel_format) == (256, 256, 8, "h264", "yuv420p")
    with open_video(clip) as video:
        found = np.stack([frame for _, frame in video.frames(8)])
        assert video.duration_s == pytest.approx(drawn.duration_s)
    small = found.reshape(len(found), 64, 4, 64, 4, 3).mean(axis=(2, 4))
    check_close(np.abs(small - drawn.frames()).mean(), 0, "video_file", "mean pixel")


def test_a_video_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    for bad, message in (
        (np.zeros((1, 47, 64, 3), np.uint8), r"even H and W, got uint8 \[47, 64, 3\]"),
        (np.zeros((1, 48, 64, 4), np.uint8), r"got uint8 \[48, 64, 4\]"),
        (np.zeros((1, 48, 64, 3), np.float32), "got float32"),
        ((), "at least one, got none"),
        ((frames[0], frames[0, :46]), r"of one size, uint8 \[48, 64, 3\], got uint8 \[46, 64, 3\]"),
    ):
        with pytest.raises(InputError, match=f"frames: expected .*{message}"):
            write_video(tmp_path / "clip.mp4", bad, 8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"path: cannot write .*clip\.mp4: File too large"):
            write_video(tmp_path / "clip.mp4", frames, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    one, two = (write_video(tmp_path / name, frames, 8).read_bytes() for name in ("one.mp4", "two.mp4"))
    assert one == two


def test_a_video_opens_with_an_extractor_or_its_name(clip: Path, drawn: ShapesVideo) -> None:
    engine = mmn_fast.load("demo")
    video = mmn_fast.Video.open(clip, extractor=engine.extractor())
    assert (video.video_id, video.contract) == ("clip", engine.contract)
    assert video.duration_s == pytest.approx(drawn.duration_s)
    named = mmn_fast.Video.open(clip, "pixels", video_id="mine", fps=8, threads=1)
    assert (named.video_id, named.contract) == ("mine", engine.contract)
    np.testing.assert_array_equal(named.features, video.features)
    slower = mmn_fast.Video.open(clip, "pixels", fps=4)
    assert len(slower.features) == -(-len(video.features) // 2)
    with pytest.raises(InputError, match=r"contract than the model: fps: expected 8.0, got 4.0"):
        engine.ground([mmn_fast.Query(slower, ["red"])])
    with pytest.raises(InputError, match="extractor: expected its name with fps, got one that is made"):
        mmn_fast.Video.open(clip, engine.extractor(), fps=4)
    with pytest.raises(InputError, match=r"no\.mp4: expected a video file"):
        mmn_fast.Video.open("no.mp4", "pixels")


def test_a_damaged_video_is_opened_aloud(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(clip.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    video = mmn_fast.Video.open(tmp_path / "damaged.mp4", "pixels")
    assert np.isfinite(video.features).all()
    assert "damaged.mp4" in caplog.text


def test_ground_takes_a_video_file_alone(clip: Path, drawn: ShapesVideo, tmp_path: Path) -> None:
    sentences = [sentence.text for sentence in drawn.sentences[:2]]
    page = tmp_path / "page.html"
    ground = ["ground", "--model", "demo", "--video", clip, "-q", sentences[0], "-q", sentences[1]]
    done = run_here(*ground, "--json", "--html", page)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert (content["video"], content["duration_s"]) == (str(clip), drawn.duration_s)
    engine = mmn_fast.load("demo")
    (result,) = engine.ground([mmn_fast.Query(mmn_fast.Video.open(clip, engine.extractor()), sentences)])
    assert [one["moments"] for one in content["results"]] == [[m.to_dict() for m in moments] for moments in result]
    html = page.read_text()
    assert '<video id="film"' in html
    assert "clip.mp4" in html
    assert run_here(*ground).stdout.startswith(sentences[0])


def test_ground_shows_how_much_of_a_long_video_is_done(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = ["ground", "--model", "demo", "-q", "red", "--video"]
    quiet = run_here(*ground, clip)
    monkeypatch.setattr("mmn_fast.cli.ground._LONG_S", 1.0)
    assert run_here(*ground, clip).stderr == quiet.stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    shown = run_here(*ground, clip)
    assert shown.stdout == quiet.stdout
    assert "features" in shown.stderr
    assert run_here(*ground, "absent.mp4").stderr.startswith("mmn-fast: --video: absent.mp4: expected a video file")


def test_ground_says_what_it_lacks(clip: Path, tmp_path: Path) -> None:
    plain = save_model(dataclasses.replace(load_model("demo"), contract=None), tmp_path / "plain")
    ground = ["ground", "-q", "red", "--video"]
    done = run_here(*ground, clip, "--model", plain)
    assert done.returncode == 2
    assert done.stderr.startswith("mmn-fast: --extractor: the model ")
    assert "does not say how its features are made" in done.stderr
    done = run_here(*ground, clip, "--model", plain, "--extractor", "pixels")
    assert done.returncode == 0, done.stderr
    done = run_here(*ground, clip, "--model", "shapes-tubes")
    said = "mmn-fast: --video: expected --tubes with preset 'shapes-tubes', which is of tubes\n"
    assert (done.returncode, done.stderr) == (2, said)
    (tmp_path / "text.mp4").write_text("no video")
    done = run_here(*ground, tmp_path / "text.mp4", "--model", "demo")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert done.stderr.startswith(f"mmn-fast: --video: {tmp_path / 'text.mp4'}: expected a video file")
    done = run_here(*ground, clip, "--model", save_model(tiny_model(tmp_path), tmp_path / "t"), "--extractor", "pixels")
    assert done.returncode == 2
    assert "--extractor: expected rows of 12 values, as the model takes, got 357 of pixels" in done.stderr


def test_ground_takes_another_extractor_aloud(clip: Path, tmp_path: Path) -> None:
    contract = dataclasses.replace(make_extractor("pixels").contract, fps=4.0)
    other = save_model(dataclasses.replace(load_model("demo"), contract=contract), tmp_path / "other")
    ground = ["ground", "-q", "red", "--video", clip, "--model", other, "--json"]
    as_the_model_says = json.loads(run_here(*ground).stdout)
    aloud = run_here(*ground, "--extractor", "pixels", "--any-features")
    assert aloud.returncode == 0, aloud.stderr
    said = "warning: extractor: pixels has features of another contract than the model: fps: expected 4.0, got 8.0"
    assert said in aloud.stderr
    assert json.loads(aloud.stdout)["results"] != as_the_model_says["results"]


def test_the_data_set_of_shapes_says_how_its_features_are_made(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", counts={"test": 1}, video=True, workers=1)
    with open_features(tmp_path / "data" / "features.h5") as store:
        assert store.contract == extractor().contract == load_model("demo").contract
        (video_id,) = store.ids()
        assert store.duration_s(video_id) == make_video("test", 0, 0).duration_s
    with h5py.File(tmp_path / "data" / "features.h5") as file:
        rows = file[video_id][:]
    from_file = mmn_fast.Video.open(tmp_path / "data" / "videos" / f"{video_id}.mp4", extractor())
    assert from_file.features.shape == rows.shape


@pytest.mark.slow
def test_moments_through_a_file_are_mostly_those_of_the_frames_in_memory(tmp_path: Path) -> None:
    """H.264 changes pixels, and so scores, a little; docs/demo.md has the figures of 200 videos."""
    engine = mmn_fast.load("demo")
    made, same, count = engine.extractor(), 0, 0
    for number in range(4):
        drawn = make_video("test", 20261, number)
        save_video(drawn.frames(), tmp_path / f"{number}.mp4")
        sentences = [sentence.text for sentence in drawn.sentences]
        file = mmn_fast.Video.open(tmp_path / f"{number}.mp4", made)
        both = [mmn_fast.Video(drawn.features, drawn.duration_s), file]
        spans = [
            [(moments[0].start_s, moments[0].end_s) for moments in result]
            for result in engine.ground([mmn_fast.Query(video, sentences) for video in both], top_k=1)
        ]
        same += sum(one == other for one, other in zip(*spans, strict=True))
        count += len(sentences)
    check_close(same / count, 1, "video_file", "same moments")
