"""`mmn-fast ground --tubes`: the official answer from files, and one sentence for what cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.golden import cases
from mmn_fast.cli import app
from mmn_fast.cli.options import EngineOptions
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.features.tubes import TubesWriter
from mmn_fast.tubes import Tube

CASE = cases.load("hcstvg_small")
QUERY = CASE.tube_queries[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All videos in one HDF5 file; one video's tubes in .npz as they are, and damaged."""
    folder = tmp_path_factory.mktemp("tubes")
    with TubesWriter(folder / "all.h5") as writer:
        for query in CASE.tube_queries:
            writer.write(query.video_id, query.tubes)
    write(folder / "one.npz", QUERY.tubes)
    write(folder / "gap.npz", QUERY.tubes, frames=np.arange(sum(len(tube.frames) for tube in QUERY.tubes)) * 2)
    write(folder / "narrow.npz", QUERY.tubes, stream1=np.ones((5, 512), np.float32), stream1_lengths=np.ones(5, int))
    write(folder / "nan.npz", QUERY.tubes, stream1=np.full((5, 1024), np.nan), stream1_lengths=np.ones(5, int))
    return folder


@pytest.fixture(autouse=True)
def _loaded(golden_engine: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the small case's model loaded, under the name "small"."""
    load = EngineOptions.load
    engines = lambda options, model: golden_engine("hcstvg_small") if model == "small" else load(options, model)  # noqa: E731
    monkeypatch.setattr(EngineOptions, "load", engines)


def write(path: Path, tubes: Any, **changes: np.ndarray) -> None:
    arrays = {
        "lengths": np.array([len(tube.frames) for tube in tubes]),
        "frames": np.concatenate([tube.frames for tube in tubes]),
        "boxes": np.concatenate([tube.boxes for tube in tubes]),
    }
    for stream in range(2):
        arrays[f"stream{stream}"] = np.concatenate([tube.features[stream] for tube in tubes])
        arrays[f"stream{stream}_lengths"] = np.array([len(tube.features[stream]) for tube in tubes])
    np.savez(path, **(arrays | changes))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ground", *map(str, arguments)])


@pytest.mark.parametrize("source", ["all.h5::video2", "one.npz"])
def test_tubes_in_files_give_the_official_answer(source: str, files: Path) -> None:
    ground = ["--model", "small", "--tubes", f"{files / source}", "-q", QUERY.sentences[0]]
    done = run(*ground, "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["tubes"] == str(files / source)
    ((moment,),) = [result["moments"] for result in content["results"]]
    tube, start, end = CASE.arrays["video2.tube"].tolist()
    assert (moment["tube"], moment["start_row"], moment["end_row"]) == (tube, start, end)
    np.testing.assert_array_equal(np.float32(moment["boxes"]), CASE.arrays["video2.boxes"][:, 1:])
    text = run(*ground, "-k", 2).stdout
    assert f"tube {tube:>3}   frames {moment['start_frame']:>5} - {moment['end_frame']:>5}" in text
    assert text.count("score") == 2


def test_tubes_that_cannot_be_used_are_one_sentence(files: Path) -> None:
    model = ["--model", "small", "-q", "a"]
    one = files / "one.npz"
    for arguments, message in [
        ([*model], "--features: give the video's features, or --video or --tubes"),
        ([*model, "--features", "a.npy"], "--duration: give the video's length in seconds"),
        (
            [*model, "--tubes", one, "--features", "a.npy"],
            "--tubes: give one of --video, --features and --tubes, got --features as well",
        ),
        ([*model, "--tubes", one, "--duration", 3], "--duration: expected none with --tubes, got 3.0"),
        ([*model, "--tubes", one, "--html", files / "page.html"], "--html: a page of tubes needs the video's frames"),
        ([*model, "--tubes", one, "-k", 0], "--top-k: expected an integer >= 1, got 0"),
        (["--model", "demo", "-q", "a", "--tubes", one], "ground_tubes: expected a model of tubes"),
        ([*model, "--tubes", files / "absent.npz"], "no such file"),
        ([*model, "--tubes", files / "all.h5"], "--tubes: expected the name of a video"),
        ([*model, "--tubes", f"{files / 'all.h5'}::"], "--tubes: expected FILE::VIDEO, got no video in"),
        ([*model, "--tubes", f"{files / 'all.h5'}::video9"], "video 'video9': not in"),
        ([*model, "--tubes", files / "gap.npz"], "tube 0: frames: expected consecutive frame numbers"),
        ([*model, "--tubes", files / "narrow.npz"], f"--tubes: tube 0 (video '{files / 'narrow.npz'}'): features[1]"),
        ([*model, "--tubes", files / "nan.npz"], f"--tubes: tube 0 (video '{files / 'nan.npz'}'): features[1]"),
    ]:
        done = run(*arguments)
        assert done.exit_code != 0
        assert isinstance(done.exception, InputError), done.output
        assert message in str(done.exception)
        assert "\n" not in str(done.exception)


def test_a_file_without_features_says_what_is_missing(files: Path) -> None:
    with TubesWriter(files / "boxes.h5") as writer:
        writer.write("v", [Tube(tube.frames, tube.boxes) for tube in QUERY.tubes])
    done = run("--model", "small", "-q", "a", "--tubes", files / "boxes.h5")
    assert "expected features or pre_clips, got neither" in str(done.exception)
