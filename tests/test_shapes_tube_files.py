"""The data set of tubes of shapes as files: what the readers of HC-STVG read is what the world has."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mmn_fast.cli import app
from mmn_fast.demo.tube_files import SENTENCES, write_tubes
from mmn_fast.demo.tubes import make_tubes
from mmn_fast.errors import InputError
from mmn_fast.evaluation.tubes import read_tube_annotations
from mmn_fast.features.tubes import open_tubes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tubes") / "data"
    write_tubes(output, seed=3, counts={"train": 1, "test": 2}, workers=1)
    return output


def test_annotations_and_tubes_read_back(dataset: Path) -> None:
    with open_tubes(dataset / "tubes.h5") as store:
        for split, count in (("train", 1), ("test", 2)):
            made = {f"{split}-3-{number:05}": make_tubes(split, 3, number) for number in range(count)}
            samples = read_tube_annotations(dataset / f"{split}.json")
            assert {sample.video_id.rsplit("-", 1)[0] for sample in samples} == set(made)
            for sample in samples:
                video = made[sample.video_id.rsplit("-", 1)[0]]
                assert sample.file_name == f"{sample.video_id}.mp4"
                said = [sentence.text for sentence in video.sentences]
                frames, boxes = video.truths[said.index(sample.sentence)]
                np.testing.assert_array_equal(sample.truth[0], frames)
                np.testing.assert_array_equal(sample.truth[1].round(2), boxes.round(2))
                for one, other in zip(store[sample.video_id], video.tubes, strict=True):
                    np.testing.assert_array_equal(one.frames, other.frames)
                    np.testing.assert_array_equal(one.boxes, other.boxes)
                    np.testing.assert_array_equal(one.features[0], other.features[0])


def test_sentences_of_a_video_share_its_tubes(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["splits"]["test"]["videos"] == 2
    assert manifest["splits"]["test"]["sentences"] > 2
    assert (dataset / "vocab.txt").is_file()
    with h5py.File(dataset / "tubes.h5") as file:
        names = [name for name in file if name.startswith("train-")]
        assert 1 < len(names) <= SENTENCES
        assert len({h5py.h5o.get_info(file[name].id).addr for name in names}) == 1


def test_command_writes_the_data_set(tmp_path: Path) -> None:
    counts = ["--train", "0", "--val", "1", "--test", "0", "--test-unseen", "0", "--workers", "1"]
    done = CliRunner().invoke(app, ["data", "shapes", "--tubes", "-o", str(tmp_path / "data"), *counts, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["box_side"] == 256
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        *("manifest.json", "tubes.h5", "val.json", "vocab.txt"),
    ]
    with pytest.raises(InputError, match="exists; name a directory that does not"):
        write_tubes(tmp_path / "data", counts={"val": 1})


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_processes(dataset: Path, tmp_path: Path) -> None:
    write_tubes(tmp_path / "again", seed=3, counts={"train": 1, "test": 2}, workers=2)
    for name in ("train.json", "test.json", "vocab.txt", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (dataset / name).read_bytes()
