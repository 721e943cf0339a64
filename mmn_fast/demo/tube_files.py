"""The data set of tubes of shapes as files: annotations of HC-STVG, tubes with their features, a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.demo.sentences import vocabulary
from mmn_fast.demo.shapes import SPLITS, VIDEO_SUFFIX, Job, dataset_jobs, made_of, save_video, write_manifest
from mmn_fast.demo.tracks import BOX_SIDE
from mmn_fast.demo.tubes import TubesVideo, make_tubes
from mmn_fast.evaluation.tubes.annotations import TubeSample, write_tube_annotations
from mmn_fast.features.tubes import TubesWriter
from mmn_fast.storage.files import new_directory
from mmn_fast.tubes import Tube

SENTENCES = 4
"""Most sentences of a video in the files; a video costs far more than a sentence."""
_STREAM = 2  # random numbers that choose a video's sentences


def write_tubes(
    output: str | Path,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    video: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the data set of tubes (annotations, tubes with features, vocabulary, manifest), whole or not at all.

    The directory holds `<split>.json` in the annotations' layout of HC-STVG, which has one sentence per entry:
    "<video_id>-<number>.mp4" is one of up to `SENTENCES` sentences of a video; frames count from 0, boxes are in pixels
    of frames of `BOX_SIDE` a side. `tubes.h5` has the tubes with their features under the entries' names
    (`features.tubes`); then `vocab.txt`, `manifest.json`, and with `video` also `videos/<video_id>.mp4`.

    Args:
        output: directory to create; must not exist.
        seed: seed of the data set, >= 0.
        counts: videos per split; default `shapes.DEFAULT_COUNTS`.
        video: also write the frames as video files, which needs the extra `video`.
        workers: processes that make videos; default the cores this process may use. Files do not depend on `workers`.
        progress: show a progress bar.

    Returns:
        The manifest.

    Raises:
        InputError: as `shapes.write_dataset`.
    """
    output, jobs, workers = dataset_jobs(output, seed, counts, video, workers)
    with new_directory(output, "output") as path:
        if video:
            (path / "videos").mkdir()
        entries: dict[str, list[TubeSample]] = {split: [] for split, _, _ in jobs}
        videos = dict.fromkeys(entries, 0)
        make = partial(_make, path / "videos" if video else None)
        with TubesWriter(path / "tubes.h5") as writer:
            for split, samples, tubes in made_of(jobs, make, workers, progress):
                videos[split] += 1
                entries[split] += samples
                for number, sample in enumerate(samples):
                    if number:
                        writer.repeat(sample.video_id, samples[0].video_id)
                    else:
                        writer.write(sample.video_id, tubes)
        for split, samples in entries.items():
            write_tube_annotations(path / f"{split}.json", samples)
        (path / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
        sentences = {split: len(samples) for split, samples in entries.items()}
        return write_manifest(path, seed, videos, sentences, video, box_side=BOX_SIDE)


def samples_of(made: TubesVideo, job: Job) -> list[TubeSample]:
    """The entries of a video: up to `SENTENCES` of its sentences, chosen by its own random numbers."""
    split, seed, number = job
    order = np.random.default_rng([seed, SPLITS.index(split), number, _STREAM]).permutation(len(made.sentences))
    samples = []
    for place, chosen in enumerate(order[:SENTENCES]):
        frames, boxes = made.truths[chosen]
        name = f"{made.video.video_id}-{place}"
        truth = frames, boxes.round(2)
        samples.append(TubeSample(f"{name}{VIDEO_SUFFIX}", name, made.sentences[chosen].text, truth))
    return samples


def _make(videos: Path | None, job: Job) -> tuple[str, list[TubeSample], tuple[Tube, ...]]:
    made = make_tubes(*job)
    if videos is not None:
        save_video(made.video.frames(), videos / f"{made.video.video_id}{VIDEO_SUFFIX}")
    return job[0], samples_of(made, job), made.tubes
