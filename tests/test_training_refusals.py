"""A training run refuses bad annotations, features and options in one sentence, or leaves them out with a warning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.training.run.trainer import train
from tests.training_runs import lines, options
from tests.training_task import write_task


def changed(task: dict[str, Path], tmp_path: Path, change: Any) -> dict[str, Path]:
    """Copy the task with changed annotations."""
    annotations = json.loads(task["annotations"].read_text())
    change(annotations)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(annotations))
    return {**task, "annotations": path}


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ([6.0, 6.0], r"changed\.json: video 'train3', entry 1: expected start < end, got \[6\.0, 6\.0\]"),
        ([6.0, 4.0], r"changed\.json: video 'train3', entry 1: expected start < end"),
        ([4.0, 99.0], r"changed\.json: video 'train3', entry 1: expected times from 0 to the duration, 16\.0 s, got"),
    ],
)
def test_strict_refuses_a_window_and_names_file_and_entry(
    window: list[float], message: str, task: dict[str, Path], tmp_path: Path
) -> None:
    def change(annotations: dict[str, Any]) -> None:
        annotations["train3"]["timestamps"][1] = window

    bad = changed(task, tmp_path, change)
    with pytest.raises(InputError, match=message):
        train(options(bad, tmp_path / "run", strict=True))
    assert not (tmp_path / "run").exists()


def test_without_strict_windows_are_cut_or_dropped_as_the_official_code_does(
    task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(annotations: dict[str, Any]) -> None:
        annotations["train3"]["timestamps"] = [[6.0, 6.0], [4.0, 99.0]]

    bad = changed(task, tmp_path, change)
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    train(options(bad, tmp_path / "run", recipe=recipe))
    assert "left out: the start is not before the end" in caplog.text
    assert sum(line["sentences"] for line in lines(tmp_path / "run") if "metrics" not in line) == 39


def test_missing_videos_are_named(task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(annotations: dict[str, Any]) -> None:
        annotations["absent"] = annotations["train0"]

    bad = changed(task, tmp_path, change)
    with pytest.raises(InputError, match=r"features: .*features lacks 1 of the 21 videos of .*changed\.json: 'absent'"):
        train(options(bad, tmp_path / "run"))
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    train(options(bad, tmp_path / "run", recipe=recipe, skip_missing=True))
    assert "they are left out" in caplog.text
    with pytest.raises(
        InputError, match=r"^strict: 1 of 21 videos skipped: they have no features \(first: 'absent'\)$"
    ):
        train(options(bad, tmp_path / "strict", skip_missing=True, strict=True))
    assert not (tmp_path / "strict").exists()


def test_validation_is_held_to_the_same_rules(
    task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(task["val_annotations"].read_text())
    name = next(iter(content))
    path = tmp_path / "val.json"
    changed_task = {**task, "val_annotations": path}
    backwards = {**content, name: content[name] | {"timestamps": [[6.0, 5.0]] * len(content[name]["sentences"])}}
    path.write_text(json.dumps(backwards))
    with pytest.raises(InputError, match=rf"val\.json: video '{name}', entry 0: expected start < end"):
        train(options(changed_task, tmp_path / "run", strict=True))
    path.write_text(json.dumps({**content, "absent": content[name]}))
    with pytest.raises(InputError, match="^strict: 1 of 9 videos skipped"):
        train(options(changed_task, tmp_path / "run", strict=True, skip_missing=True))
    path.write_text(json.dumps({"absent": content[name]}))
    with pytest.raises(InputError, match=r"features lacks 1 of the 1 videos of .*val\.json: 'absent'"):
        train(options(changed_task, tmp_path / "run", skip_missing=True))
    assert not (tmp_path / "run").exists()
    path.write_text(json.dumps({**backwards, "absent": content[name]}))
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=2)  # type: ignore[type-var]
    caplog.clear()
    train(options(changed_task, tmp_path / "run", recipe=recipe, skip_missing=True))
    for said in ("val.json: 1 of 9 videos left out", "lacks 1 of the 8 videos of "):
        assert sum(said in record.getMessage() for record in caplog.records) == 1, said


def test_long_sentences_of_training_are_one_warning_and_refused_where_asked(
    task: dict[str, Path], tmp_path: Path
) -> None:
    def change(annotations: dict[str, Any]) -> None:
        for name in ("train0", "train1"):
            annotations[name]["sentences"][0] = "the red thing " * 10

    bad = changed(task, tmp_path, change)
    with pytest.raises(
        InputError, match=r"^strict: 2 of 40 sentences cut: .* encoder's 12 word pieces \(first: 'the red"
    ):
        train(options(bad, tmp_path / "run", strict=True))
    assert not (tmp_path / "run").exists()
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    with pytest.warns(UserWarning, match="^2 of 40 sentences were cut to the encoder's 12 word pieces") as caught:
        train(options(bad, tmp_path / "run", recipe=recipe))
    assert sum("were cut" in str(one.message) for one in caught) == 1


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_feature_width_that_differs_is_refused_before_the_first_step(
    cache_gib: float, task: dict[str, Path], tmp_path: Path
) -> None:
    write_task(tmp_path, 4, seed=1)
    np.save(tmp_path / "features" / "train2.npy", np.zeros((5, 7), np.float32))
    bad = {"annotations": tmp_path / "train.json", "features": tmp_path / "features", "tokenizer": task["tokenizer"]}
    message = r"video 'train2': .*features/train2\.npy: expected a float array \[n_src, 12\], got float32 \[5, 7\]"
    with pytest.raises(InputError, match=message):
        train(options(bad, tmp_path / "run", cache_gib=cache_gib))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"losses": "all"},
            r"losses: expected one of full, no-cross-video, iou-only for 'tiny', .*, got 'all'",
        ),
        ({"precision": "int8"}, r"precision: expected one of fp32, bf16, fp16, got 'int8'"),
        ({"accumulate": 0}, r"accumulate: expected an integer >= 1, got 0"),
        ({"checkpoint_every": 2.5}, r"checkpoint_every: expected an integer >= 0, got 2.5"),
        ({"seed": True}, r"seed: expected an integer >= 0, got True"),
        ({"dropout": float("nan")}, r"dropout: expected a finite number >= 0, got nan"),
        ({"text_rate": "0.1"}, r"text_rate: expected a finite number >= 0, got '0.1'"),
        ({"cache_gib": float("nan")}, r"cache_gib: expected a finite number >= 0, got nan"),
        ({"dropout": 1.0}, r"dropout: expected a number below 1, got 1.0"),
        ({"accumulate": 3}, r"batch_size: expected a multiple of processes x accumulate, 3, got 8"),
        ({"device": "tpu"}, r"device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"text_encoder": "width=banana"}, r"text_encoder: expected sizes .* got 'width=banana'"),
        ({"text_encoder": "depth=3"}, r"text_encoder: unknown key 'depth'"),
        ({"text_encoder": "width=10,num_heads=3"}, r"text_encoder: width: expected a multiple of num_heads"),
        ({"tokenizer": None}, r"tokenizer: expected one for a text encoder that starts from scratch, got none"),
        ({"preset": "charades-sta"}, r"video 'train0': .*: expected a float array \[n_src, 4096\]"),
    ],
)
def test_options_are_refused_with_a_sentence(
    changes: dict[str, Any], message: str, task: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(options(task, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_output_that_is_not_empty_is_refused(task: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"output: .*run is not empty; resume the run in it, or name a new directory"):
        train(options(task, tmp_path / "run"))


def test_loss_that_is_not_finite_stops_the_run(task: dict[str, Path], tmp_path: Path) -> None:
    recipe = dataclasses.replace(options(task, tmp_path).recipe, learning_rate=1e30)  # type: ignore[type-var]
    with pytest.raises(FloatingPointError, match=r"step \d+: loss .* not finite; lower the learning rate"):
        train(options(task, tmp_path / "run", recipe=recipe))
