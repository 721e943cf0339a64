"""A task of tubes that a tiny model learns in seconds. Each word has a direction in feature space; the rows of one tube
take it on while what the word names is happening. The video's other tubes are distractors.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import yaml

from mmn_fast.evaluation.tubes import TubeSample
from mmn_fast.evaluation.tubes.annotations import write_tube_annotations
from mmn_fast.features.tubes import TubesWriter
from mmn_fast.presets import Preset
from mmn_fast.tubes import Tube
from tests.tiny_model import vocabulary
from tests.training_runs import command_of
from tests.training_task import PRESET, WORDS

STREAMS = (9, 6)
TUBE_PRESET: Preset = dataclasses.replace(
    PRESET,
    name="tiny-tubes",
    feature_streams=STREAMS,
    clamp_pre_clips=False,
    score_fusion="product",
    recall_at=(1,),
    recall_ious=(0.3, 0.5),
    timestamp_unit="frames",
    loss=dataclasses.replace(PRESET.loss, min_iou=0.3, max_iou=0.9),
    recipe=dataclasses.replace(
        PRESET.recipe, processes=2, betas=(0.9, 0.999), weight_decay=1e-6, max_gradient_norm=10.0, seed=25285
    ),
)


def make_videos(count: int, seed: int, name: str = "v") -> tuple[list[TubeSample], dict[str, list[Tube]]]:
    """Sentences with their true tubes, and every video's tubes.

    Args:
        count: videos, each with one to four tubes of 3 to 40 rows.
        seed: of everything.
        name: prefix of the videos' names.
    """
    rng = np.random.RandomState(seed)
    directions = np.random.RandomState(0).standard_normal((len(WORDS), sum(STREAMS)))
    samples, tubes = [], {}
    for video in range(count):
        found = []
        for _ in range(rng.randint(1, 5)):
            rows = rng.randint(3, 41)
            first = rng.randint(0, 50)
            corner = rng.uniform(0, 200, 2) + np.cumsum(rng.uniform(-2, 2, (rows, 2)), 0)
            boxes = np.concatenate([corner, corner + rng.uniform(40, 160, 2)], 1).astype(np.float32)
            found.append((np.arange(first, first + rows), boxes, 0.3 * rng.standard_normal((rows, sum(STREAMS)))))
        word, (frames, boxes, features) = rng.randint(len(WORDS)), found[rng.randint(len(found))]
        start = rng.randint(0, len(frames))
        end = rng.randint(start + 1, len(frames) + 1)
        features[start:end] += directions[word]
        tubes[f"{name}{video}"] = [
            Tube(numbers, corners, [rows[:, : STREAMS[0]].astype(np.float32), rows[:, STREAMS[0] :].astype(np.float32)])
            for numbers, corners, rows in found
        ]
        truth = (frames[start:end], boxes[start:end])
        samples.append(TubeSample(f"{name}{video}.mp4", f"{name}{video}", f"the dog {WORDS[word]}", truth))
    return samples, tubes


def write_tube_task(root: Path, count: int, seed: int, name: str) -> dict[str, Path]:
    """Annotations in the official layout, tubes in the converted layout, and a vocabulary.

    Args:
        root: directory to write to.
        count: videos, see `make_videos`.
        seed: of everything.
        name: prefix of the videos' names, and the files' name.

    Returns:
        Paths: annotations, features, tokenizer.
    """
    samples, tubes = make_videos(count, seed, name)
    write_tube_annotations(root / f"{name}.json", samples)
    with TubesWriter(root / f"{name}.h5") as writer:
        for video_id, found in tubes.items():
            writer.write(video_id, found)
    paths = {"annotations": root / f"{name}.json", "features": root / f"{name}.h5"}
    return {**paths, "tokenizer": vocabulary(root / "vocab.txt")}


def write_yaml(path: Path) -> Path:
    """The tiny preset as an official configuration file of HC-STVG."""
    model = {
        "NUM_CLIPS": TUBE_PRESET.num_clips,
        "JOINT_SPACE_SIZE": TUBE_PRESET.joint_size,
        "FEATPOOL": {"INPUT_SIZE": list(STREAMS), "HIDDEN_SIZE": TUBE_PRESET.hidden_size, "KERNEL_SIZE": 2},
        "FEAT2D": {"NAME": "pool", "POOLING_COUNTS": list(TUBE_PRESET.pooling_counts)},
        "PREDICTOR": {"HIDDEN_SIZE": TUBE_PRESET.conv_hidden_size, "KERNEL_SIZE": 3, "NUM_STACK_LAYERS": 2},
        "LOSS": {"MIN_IOU": 0.3, "MAX_IOU": 0.9},
    }
    solver = {"LR": 0.005, "BATCH_SIZE": 8, "MAX_EPOCH": 2, "MILESTONES": [1], "FREEZE_BERT": 1, "ONLY_IOU": 1}
    tree = {
        "MODEL": {"TAN": model},
        "INPUT": {"NUM_PRE_CLIPS": TUBE_PRESET.num_pre_clips},
        "DATASETS": {"NAME": "stvg"},
        "SOLVER": solver,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def tube_command(task: dict[str, Path], tmp_path: Path, output: str, *extra: str) -> list[str]:
    """The command line of a run on the task."""
    return command_of(write_yaml(tmp_path / "tubes.yaml"), task, tmp_path / output, *extra)
