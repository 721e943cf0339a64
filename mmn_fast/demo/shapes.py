"""The data set of coloured shapes: videos by split, seed and number, and the files of a data set.

A video is a scene (`scenes`), its frames, and one sentence per fact (`sentences`). The function `held_out` picks
combinations of colour, form and action that happen only in the split `test_unseen`; every pair of the three happens in
training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.demo.rendering import FRAME_SIZE, Frames
from mmn_fast.demo.rendering import render as render_scene
from mmn_fast.demo.scenes import ACTION_NAMES, COLOURS, FPS, SHAPES, Scene, action_name
from mmn_fast.demo.sentences import Sentence, say, vocabulary
from mmn_fast.demo.stage import draw_scene
from mmn_fast.errors import InputError
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.features.extractors.pixels import PixelFeatures
from mmn_fast.features.extractors.registry import make_extractor
from mmn_fast.media.writing import encoder, write_video
from mmn_fast.process.once import kept_property
from mmn_fast.storage.files import new_directory
from mmn_fast.storage.hdf5_file import new_hdf5
from mmn_fast.version import __version__

SPLITS = ("train", "val", "test", "test_unseen")
DEFAULT_COUNTS = {"train": 2500, "val": 100, "test": 200, "test_unseen": 200}
VIDEO_SUFFIX = ".mp4"


@dataclass(frozen=True, eq=False)
class ShapesVideo:
    """A video of the data set.

    Attributes:
        video_id: "<split>-<seed>-<number>".
        scene: the shapes and the facts.
        sentences: one per fact (two in `train`), in order of start; `test_unseen` has only sentences about held-out
            combinations.
    """

    video_id: str
    scene: Scene
    sentences: tuple[Sentence, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.scene.duration_s

    def frames(self, size: int = FRAME_SIZE) -> Frames:
        """The frames, uint8 [F, size, size, 3], RGB, at `scenes.FPS`; drawn anew by each call."""
        return render_scene(self.scene, size)

    @kept_property
    def features(self) -> Float32:
        """Clip features, float32 [n_clips, PixelFeatures.width]."""
        return PixelFeatures(FPS)(self.frames())

    def annotation(self) -> dict[str, Any]:
        """The video's entry in the official JSON layout."""
        return {
            "duration": self.duration_s,
            "timestamps": [[sentence.fact.start_s, sentence.fact.end_s] for sentence in self.sentences],
            "sentences": [sentence.text for sentence in self.sentences],
        }


def extractor() -> Extractor:
    """The extractor of this world's features."""
    return make_extractor("pixels", fps=FPS)


def held_out(colour: str, shape: str, action: str) -> bool:
    """Whether a combination is kept for `test_unseen`: one in eight, spread so that training sees every pair.

    Args:
        colour: one of `scenes.COLOURS`.
        shape: one of `scenes.SHAPES`.
        action: one of `scenes.ACTION_NAMES`.
    """
    numbers = list(COLOURS).index(colour), SHAPES.index(shape), ACTION_NAMES.index(action)
    return (numbers[0] + 2 * numbers[1] + 3 * numbers[2]) % 8 == 0


def make_video(split: str, seed: int, number: int) -> ShapesVideo:
    """Make one video; it depends on the arguments alone.

    Args:
        split: one of `SPLITS`; each split has its own stream of random numbers.
        seed: seed of the data set, >= 0.
        number: the video's number in its split, >= 0.
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    for name, value in (("seed", seed), ("number", number)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"{name}: expected an integer >= 0, got {value!r}")
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    unseen = split == "test_unseen"
    while True:
        scene = draw_scene(rng, lambda *combination: unseen or not held_out(*combination))
        facts = [fact for fact in scene.facts if not fact.implied]
        if unseen:
            facts = [f for f in facts if any(held_out(t.colour, t.shape, action_name(f)) for t in f.things)]
        if facts:
            break
    phrasings = 2 if split == "train" else 1
    sentences = tuple(say(fact, scene, rng) for fact in facts for _ in range(phrasings))
    return ShapesVideo(f"{split}-{seed}-{number:05}", scene, sentences)


def write_dataset(
    output: str | Path,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    video: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the data set (annotations, features, vocabulary, manifest), whole or not at all.

    The directory holds `<split>.json` in the official JSON layout, `features.h5` with the features' contract and one
    float32 dataset [n_clips, D] and length per video, `vocab.txt`, `manifest.json`, and with `video` also
    `videos/<video_id>.mp4`.

    Args:
        output: directory to create; must not exist.
        seed: seed of the data set, >= 0.
        counts: videos per split; default `DEFAULT_COUNTS`. A split without videos gets no annotation file.
        video: also write the frames as video files, which needs the extra `video`.
        workers: processes that make videos; default the cores this process may use. Files do not depend on `workers`.
        progress: show a progress bar.

    Returns:
        The manifest.

    Raises:
        InputError: an argument cannot be used, the output exists or cannot be written, or there is no video writer.
    """
    output, jobs, workers = dataset_jobs(output, seed, counts, video, workers)
    with new_directory(output, "output") as partial_path:
        return _fill(partial_path, seed, jobs, video, workers, progress)


Job = tuple[str, int, int]
"""Split, seed and number of a video to make."""


def dataset_jobs(
    output: str | Path, seed: int, counts: Mapping[str, int] | None, video: bool, workers: int | None
) -> tuple[Path, list[Job], int]:
    """Check the arguments of `write_dataset`; return the directory, the videos to make and the number of processes."""
    output = Path(output)
    counts = DEFAULT_COUNTS if counts is None else dict(counts)
    for split, count in counts.items():
        if split not in SPLITS:
            raise InputError(f"counts: expected splits of {', '.join(SPLITS)}, got {split!r}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InputError(f"counts: {split}: expected a number of videos >= 0, got {count!r}")
    jobs = [(split, seed, number) for split in SPLITS for number in range(counts.get(split, 0))]
    if not jobs:
        raise InputError("counts: expected at least one video, got none")
    if output.exists():
        raise InputError(f"output: {output} exists; name a directory that does not")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {seed!r}")
    if video:
        try:
            encoder()
        except InputError as error:
            raise InputError(f"video: {error}") from None
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise InputError(f"workers: expected a number of processes >= 1, got {workers}")
    return output, jobs, min(workers, len(jobs))


_Made = TypeVar("_Made")


def _fill(path: Path, seed: int, jobs: list[Job], video: bool, workers: int, progress: bool) -> dict[str, Any]:
    if video:
        (path / "videos").mkdir()
    annotations: dict[str, dict[str, Any]] = {}
    with (path / "features.h5").open("x+b") as file, new_hdf5(file) as (features, check):
        features.attrs["feature_contract"] = extractor().contract.to_json()
        make = partial(_make, path / "videos" if video else None)
        for split, video_id, annotation, rows in made_of(jobs, make, workers, progress):
            annotations.setdefault(split, {})[video_id] = annotation
            features.create_dataset(video_id, data=rows).attrs["duration_s"] = annotation["duration"]
            check()
    for split, videos in annotations.items():
        (path / f"{split}.json").write_text(json.dumps(videos, indent=1) + "\n", encoding="utf-8")
    (path / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    sentences = {
        split: sum(len(entry["sentences"]) for entry in videos.values()) for split, videos in annotations.items()
    }
    return write_manifest(path, seed, {split: len(videos) for split, videos in annotations.items()}, sentences, video)


def write_manifest(
    path: Path, seed: int, videos: Mapping[str, int], sentences: Mapping[str, int], written: bool, **more: Any
) -> dict[str, Any]:
    """Write manifest.json of a data set and return it: numbers of videos and of sentences per split, and `more`."""
    manifest = {
        "mmn_fast_version": __version__,
        "seed": seed,
        "splits": {split: {"videos": count, "sentences": sentences[split]} for split, count in videos.items()},
        "feature_width": PixelFeatures.width,
        "fps": FPS,
        "frame_size": FRAME_SIZE,
        "videos_written": written,
        **more,
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def made_of(jobs: Sequence[Job], make: Callable[[Job], _Made], workers: int, progress: bool) -> Iterator[_Made]:
    """Yield what `make` makes of every job, in order, with a bar on stderr if `progress` is shown."""
    from rich.console import Console
    from rich.progress import track

    bar = partial(
        track,
        description="Making videos",
        total=len(jobs),
        console=Console(stderr=True),
        disable=not progress,
        transient=True,
    )
    if workers <= 1:
        yield from bar(map(make, jobs))
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Spawned, not forked: the caller may have threads (torch, BLAS), and a forked process would inherit their locks.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from bar(pool.map(make, jobs, chunksize=max(1, min(16, len(jobs) // (4 * workers)))))


def _make(videos: Path | None, job: Job) -> tuple[str, str, dict[str, Any], Float32]:
    video = make_video(*job)
    if videos is not None:
        save_video(video.frames(), videos / f"{video.video_id}{VIDEO_SUFFIX}")
    return job[0], video.video_id, video.annotation(), video.features


def save_video(frames: Frames, path: str | Path, scale: int = 4) -> None:
    """Write frames as an mp4 file.

    Args:
        frames: uint8 [F, H, W, 3], RGB, shown at `scenes.FPS`.
        path: file to write.
        scale: pixels of the file per pixel of the frames; enlarges small frames.

    Raises:
        InputError: PyAV is not installed, or a side of the enlarged frames is odd.
    """
    write_video(path, (frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in frames), FPS)
