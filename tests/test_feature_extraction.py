"""`mmn-fast features`: which videos, resumed runs, killed runs, full disks, damaged videos and crashing decoders."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.features import open_features
from mmn_fast.features.extraction import extract_features
from mmn_fast.features.extraction.parts import Parts
from mmn_fast.features.extraction.videos import VideoFile, find_videos
from mmn_fast.features.extraction.workers import Skipped, Work, Workers
from mmn_fast.features.extractors import ExtractedFeatures, make_extractor
from tests.command import run_here

pytest.importorskip("av")
from tests.videos import write_video

OPTIONS = ("--extractor", "pixels", "--workers", "1", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 2 s, a text and an empty file with a video's name, and a file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("one.mp4", "two.mkv", "three.mp4"):
        write_video(folder / name, 20)
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.mp4").touch()
    (folder / "notes.md").write_text("notes")
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run over the folder, and its output."""
    output = tmp_path_factory.mktemp("features") / "features.h5"
    return run_here("features", folder, "-o", output, *OPTIONS, "--json"), output


def names(videos: list[VideoFile]) -> list[str]:
    return [video.video_id for video in videos]


def test_files_folders_lists_and_patterns_name_videos(folder: Path, tmp_path: Path) -> None:
    assert names(find_videos([folder])) == ["empty", "one", "text", "three", "two"]
    assert names(find_videos([folder / "two.mkv", folder / "one.mp4", folder])) == [
        *("two", "one", "empty", "text", "three")
    ]
    assert names(find_videos([f"{folder}/t*e.mp4"])) == ["three"]
    assert names(find_videos([f"{folder}/**/t*"])) == ["text", "three", "two"]
    (folder.parent / "list.txt").write_text(f"{folder.name}/two.mkv\n\n  {folder}/one.mp4\r\n")
    assert names(find_videos([folder.parent / "list.txt"])) == ["two", "one"]
    odd = write_video(tmp_path / "a[1]*.mp4", 2)
    assert names(find_videos([odd])) == ["a[1]*"]


def test_names_without_videos_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "list.txt").write_text("absent.mp4\n")
    (tmp_path / "empty.txt").touch()
    for named, message in (
        ([], "expected at least one video, got none"),
        ([tmp_path / "absent.mp4"], "absent.mp4: no such file or folder"),
        ([tmp_path / "inner"], "inner names no video"),
        ([f"{tmp_path}/*.mp4"], "names no video"),
        ([tmp_path / "empty.txt"], "empty.txt names no video"),
        ([tmp_path / "list.txt"], "1 of its 1 files do not exist, such as "),
        ([""], "expected a name or a path, got ''"),
    ):
        with pytest.raises(InputError, match="^videos: ") as caught:
            find_videos(named)
        assert message in str(caught.value)


def test_two_videos_of_one_id_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "one.mkv"
    other.write_bytes(b"x")
    done = run_here("features", folder, other, "-o", tmp_path / "x.h5", *OPTIONS)
    assert done.returncode == 2
    assert "VIDEOS: expected one video per id, got" in done.stderr
    assert "both with the id 'one'; rename one of them" in done.stderr
    assert not list(tmp_path.glob("x.h5*"))


def test_a_run_names_skips_and_counts_damaged_videos(
    folder: Path, finished: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    done, output = finished
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["videos"], report["extracted"], report["kept"]) == (5, 3, 0)
    assert sorted(report["skipped"]) == [f"{folder}/empty.mp4", f"{folder}/text.mp4"]
    assert report["rows"] == 24
    assert report["video_s"] == pytest.approx(6)
    for name in ("text", "empty"):
        assert f"mmn-fast: warning: skipped: {folder}/{name}.mp4: " in done.stderr
    assert not output.with_name("features.h5.parts").exists()


def test_the_file_has_rows_lengths_sources_and_the_contract(
    folder: Path, finished: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    extractor = make_extractor("pixels")
    with open_features(finished[1]) as store, h5py.File(finished[1]) as file:
        assert store.ids() == ["one", "three", "two"]
        assert store.contract == extractor.contract
        for name in ("one.mp4", "two.mkv"):
            expected = extractor.read(folder / name)
            assert np.array_equal(store[name[:3]], expected.rows)
            assert store.duration_s(name[:3]) == expected.duration_s == pytest.approx(2)
            assert file[name[:3]].attrs["source"] == name
            assert file[name[:3]].attrs["source_bytes"] == (folder / name).stat().st_size


@pytest.mark.slow
def test_a_finished_file_keeps_its_videos_and_gets_new_ones(
    folder: Path, finished: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "features.h5"
    output.write_bytes(finished[1].read_bytes())
    os.link(folder / "one.mp4", tmp_path / "four.mp4")
    report = extract_features([folder / "one.mp4", tmp_path / "four.mp4"], output, "pixels", workers=2)
    assert (report.num_kept, report.num_extracted, report.skipped) == (1, 1, {})
    with open_features(output) as store:
        assert store.ids() == ["four", "one", "three", "two"]
        assert np.array_equal(store["four"], store["one"])
        assert store.duration_s("three") == pytest.approx(2)
    write_video(tmp_path / "two.mkv", 19)
    for path, message in (
        (
            tmp_path / "two.mkv",
            rf"has features of another video 'two': {(folder / 'two.mkv').stat().st_size} bytes then",
        ),
        (write_video(tmp_path / "one.avi", 3, codec="mpeg4"), r"another video 'one': one\.mp4 then, one\.avi now"),
    ):
        with pytest.raises(InputError, match=f"^videos: .*{message}"):
            extract_features([path], output, "pixels", workers=1)
    before = output.stat().st_mtime_ns
    with pytest.raises(InputError, match=r"features\.h5 has features of another contract: fps: expected 8\.0, got 4"):
        extract_features([folder], output, "pixels", fps=4)
    assert output.stat().st_mtime_ns == before
    assert not output.with_name("features.h5.parts").exists()


def test_outputs_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["one"] = np.zeros((3, 4), np.float32)
    (tmp_path / "text.h5").write_text("text")
    (tmp_path / "folder.h5").mkdir()
    for output, message in (
        ("plain.h5", "exists and has no feature contract, so nothing is added to it"),
        ("text.h5", "expected an HDF5 file or a directory, got something else"),
        ("folder.h5", "expected the name of a file ending in .h5 or .hdf5"),
        ("x.npy", "expected the name of a file ending in .h5 or .hdf5"),
        ("absent/x.h5", "no such folder"),
    ):
        with pytest.raises(InputError, match="^output: ") as caught:
            extract_features([folder], tmp_path / output, "pixels")
        assert message in str(caught.value)
    done = run_here("features", folder, "-o", tmp_path / "x.h5")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--extractor: expected pixels or hf:" in done.stderr
    done = run_here("features", folder, "-o", tmp_path / "x.h5", "--extractor", "pixels", "--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.startswith("mmn-fast: --device: the extractor 'pixels' runs on a CPU, got 'cuda'")
    for options, message in (
        ({"extractor": "pixel"}, "extractor: expected pixels or hf:"),
        ({"fps": 0}, "fps: expected a number > 0"),
        ({"workers": 0}, "workers: expected an integer >= 1, got 0"),
        ({"max_duration_s": 0}, "max_duration_s: expected a finite number > 0, got 0"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            extract_features([folder], tmp_path / "x.h5", **{"extractor": "pixels", **options})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="speed"):
        extract_features([folder], tmp_path / "x.h5", "pixels", speed=3)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
def test_a_model_says_how_its_features_are_made(folder: Path, tmp_path: Path) -> None:
    done = run_here("features", folder / "one.mp4", "-o", tmp_path / "x.h5", "--model", "demo", "--json")
    assert (done.returncode, json.loads(done.stdout)["contract"]["fps"]) == (0, 8)
    done = run_here("features", folder / "one.mp4", "-o", tmp_path / "y.h5", "--model", "demo", "--fps", 4)
    assert done.returncode == 2
    assert "--extractor: pixels makes other features than the model's: fps: expected 8.0, got 4.0" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_another_run_for_the_same_output_waits_outside(tmp_path: Path) -> None:
    message = r"^output: another run writes .*x\.h5 at this moment"
    with Parts(tmp_path / "x.h5"), pytest.raises(InputError, match=message):
        Parts(tmp_path / "x.h5")
    with Parts(tmp_path / "x.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def command(*arguments: object, most_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    code = [sys.executable, "-m", "mmn_fast", "features", *map(str, arguments), *OPTIONS]
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)


@pytest.mark.slow
def test_a_killed_run_loses_the_video_at_hand_alone(folder: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(30):
        os.link(folder / "one.mp4", videos / f"v{number:02}.mp4")
    output, parts = tmp_path / "x.h5", tmp_path / "x.h5.parts"
    run = command(videos, "-o", output)
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.safetensors"))) < 2:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert not output.exists()
    while True:  # the process at hand writes its video and ends
        with_time = [path.stat().st_mtime for path in parts.glob("*.safetensors")]
        if time.time() - max(with_time) > 1:
            break
        time.sleep(0.1)
    kept = len(with_time)
    assert 2 <= kept < 30
    with pytest.raises(InputError, match=r"x\.h5\.parts has features of another contract: fps: expected 8"):
        extract_features([videos], output, "pixels", fps=3)
    report = extract_features([videos], output, "pixels")
    assert (report.num_kept, report.num_extracted) == (kept, 30 - kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["videos", "x.h5"]
    with open_features(output) as store:
        assert len(store) == 30
        assert all(np.array_equal(store[name], store["v00"]) for name in store.ids())


@pytest.mark.slow
def test_a_full_disk_ends_in_one_sentence_and_loses_nothing(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.h5"
    videos = [folder / name for name in ("one.mp4", "two.mkv", "three.mp4")]
    run = command(*videos, "-o", output, most_bytes=8_000)  # rows of one video take 11 kB
    _, said = run.communicate()
    assert run.returncode == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith("mmn-fast: --output: cannot write ")
    assert last.endswith(f"File too large; 0 videos of this run kept in {output}.parts; the same command goes on")
    run = command(*videos, "-o", output, most_bytes=20_000)  # all three take 34 kB
    _, said = run.communicate()
    assert run.returncode == 1
    assert said.strip().splitlines()[-1].startswith(f"mmn-fast: --output: cannot write {output}: File too large")
    assert "Traceback" not in said
    assert not output.exists()
    report = extract_features(videos, output, "pixels")
    assert (report.num_kept, report.num_extracted) == (3, 0)
    with open_features(output) as store:
        assert len(store) == 3


class _Crash:
    """A path that ends the process that receives it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (11,)

    def __str__(self) -> str:
        return "crash.mp4"


@pytest.mark.slow
def test_a_crash_of_the_decoder_skips_its_video_alone(folder: Path, tmp_path: Path) -> None:
    videos = [VideoFile("crash", _Crash()), VideoFile("one", folder / "one.mp4")]  # type: ignore[arg-type]
    with Workers(1, Work("pixels", {"threads": 1}, tmp_path, None)) as workers:
        first, second = workers.run(videos, lambda *_: None)
    assert isinstance(first, Skipped)
    assert first.reason == "crash.mp4: the process that read it ended with exit status 11"
    assert second.video_id == "one"  # type: ignore[union-attr]


def test_without_pyav_no_video_is_skipped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken/av").mkdir(parents=True)
    (tmp_path / "broken/av/__init__.py").write_text("raise ImportError('none here')")
    monkeypatch.syspath_prepend(tmp_path / "broken")  # processes get the caller's path
    with pytest.raises(InputError, match=r"^reading videos needs PyAV \(pip install mmn_fast\[video\]\)"):
        extract_features([folder], tmp_path / "x.h5", "pixels")
    assert not list(tmp_path.glob("x.h5*"))


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    from mmn_fast.features.extraction.parts import write_part

    contract = make_extractor("pixels").contract
    rows = np.ones((2, contract.width), np.float32)
    with Parts(tmp_path / "x.h5") as parts:
        for name in ("a", "b"):
            (tmp_path / f"{name}.mp4").touch()
            video = VideoFile(name, tmp_path / f"{name}.mp4")
            write_part(parts.folder, video, ExtractedFeatures(rows, 1.5, "the end is lost"), contract)
    path = sorted(parts.folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-40])
    with Parts(tmp_path / "x.h5") as parts:
        (left,) = parts.done()
        other = dataclasses.replace(contract, fps=3)  # a process of a killed run finishes its video now
        write_part(parts.folder, VideoFile("late", tmp_path / "a.mp4"), ExtractedFeatures(rows, 1.5), other)
        parts.assemble(contract)
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file) == [left]
        assert file[left].attrs["lost"] == "the end is lost"
