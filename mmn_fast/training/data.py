"""Training data: annotations, word pieces and targets are computed once, features are read as pre-clips.

A batch is gathered from arrays over the whole data set. A step loops over the videos of a batch in Python only to read
features that did not fit into memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmn_fast.arrays import Float32, Int64
from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.evaluation.notes import Note, cut_sentences, refuse
from mmn_fast.features import FeatureStore, pre_clips
from mmn_fast.geometry import cells_to_moments, plan_for, temporal_iou
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some videos and all of their sentences.

    Attributes:
        pre_clips: float32 [B, T, D].
        token_ids: int64 [S, L], padded with 0.
        lengths: int64 [S], word pieces of each sentence.
        video_of: int64 [S], ascending: index of the sentence's video in the batch.
        iou: float32 [S, P], IoU of every proposal with the sentence's moment, the best of several.
        moments: float32 [S, 2], start and end, seconds; float32 [S, G, 2] if a sentence of the data set has several, a
            sentence with fewer than G repeats one of its own.
    """

    pre_clips: Tensor
    token_ids: Tensor
    lengths: Tensor
    video_of: Tensor
    iou: Tensor
    moments: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def usable_samples(
    samples: Sequence[Sample],
    features: FeatureStore,
    tokenizer: Tokenizer,
    source: str,
    argument: str = "features",
    skip_missing: bool = False,
    strict: bool = False,
) -> list[Sample]:
    """The samples that have features; logs in one line how many have none.

    Args:
        samples: videos with their sentences.
        features: features of the videos.
        tokenizer: says which sentences are cut.
        source: the annotations' name in messages.
        argument: the name of the features' argument in messages.
        skip_missing: leave out videos without features instead of refusing.
        strict: refuse to leave out videos, and refuse sentences that the tokenizer cuts.

    Raises:
        InputError: a video has no features (unless `skip_missing`), no video has any, or `strict` refuses something.
    """
    missing = [sample.video_id for sample in samples if sample.video_id not in features]
    if missing:
        few = f"{len(missing)} of the {len(samples)} videos of {source}: {first_few(missing)}"
        if not skip_missing or len(missing) == len(samples):
            raise InputError(f"{argument}: {features.path} lacks {few}")
        if strict:
            refuse([Note("skipped", "videos", len(missing), len(samples), "they have no features", first_few(missing))])
        logger.warning("%s: %s lacks %s; they are left out", argument, features.path, few)
        absent = set(missing)
        samples = [sample for sample in samples if sample.video_id not in absent]
    if strict:
        refuse(cut_sentences(tokenizer, [sentence for sample in samples for sentence in sample.sentences]))
    return list(samples)


class TrainingData:
    """A data set that gives batches.

    A sentence with several windows (QVHighlights) is one training sentence. A proposal's target is its best IoU with
    any of the windows. Two sentences overlap as much as the best pair of their windows.

    Args:
        samples: videos with their sentences and moments in seconds.
        features: features of the videos.
        preset: sizes and geometry.
        tokenizer: makes word pieces.
        source: the annotations' name in messages.
        cache_gib: pre-clips are kept in memory if all of them take at most this many GiB; otherwise they are read in
            every epoch.
        skip_missing: leave out videos without features and log how many, instead of refusing.
        strict: refuse to leave out videos, and refuse sentences that the text encoder would cut.
        progress: show a progress bar while features are read.

    Raises:
        InputError: a video has no features, `strict` refuses something, or features cannot be used (all of them are
            checked); the message names the file and the video.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        features: FeatureStore,
        preset: Preset,
        tokenizer: Tokenizer,
        source: str = "annotations",
        cache_gib: float = 4.0,
        skip_missing: bool = False,
        strict: bool = False,
        progress: bool = False,
    ) -> None:
        samples = usable_samples(samples, features, tokenizer, source, skip_missing=skip_missing, strict=strict)
        self.preset, self._features = preset, features
        self.video_ids = [sample.video_id for sample in samples]
        counts = np.array([len(sample.sentences) for sample in samples])
        self._ends = counts.cumsum()
        self.num_sentences = int(counts.sum())

        sentences = [sentence for sample in samples for sentence in sample.sentences]
        self._token_ids, self._lengths = padded_tokens(tokenizer, sentences)
        self._moments, self._iou = _targets(samples, preset)

        size = len(samples) * preset.num_pre_clips * preset.input_size * 4
        self._cache: Float32 | None = None
        if size <= cache_gib * 2**30:
            self._cache = np.empty((len(samples), preset.num_pre_clips, preset.input_size), np.float32)
        for video in track(range(len(samples)), "features", progress):
            clips = self._read(video)
            if self._cache is not None:
                self._cache[video] = clips

    def __len__(self) -> int:
        return len(self.video_ids)

    def sentences_in(self, videos: npt.ArrayLike) -> int:
        """The number of sentences of some videos."""
        index = np.asarray(videos, np.int64)
        return int((self._ends[index] - np.where(index > 0, self._ends[index - 1], 0)).sum())

    def batch(self, videos: npt.ArrayLike) -> Batch:
        """The batch of some videos, given by their numbers, on the CPU."""
        index = np.asarray(videos, np.int64)
        starts = np.where(index > 0, self._ends[index - 1], 0)
        counts = self._ends[index] - starts
        first = counts.cumsum() - counts  # first sentence of each video in the batch
        rows = np.arange(counts.sum()) + np.repeat(starts - first, counts)
        clips = self._cache[index] if self._cache is not None else np.stack([self._read(video) for video in index])
        lengths = self._lengths[rows]
        return Batch(
            pre_clips=torch.from_numpy(clips),
            token_ids=torch.from_numpy(self._token_ids[rows, : lengths.max()]),
            lengths=torch.from_numpy(lengths),
            video_of=torch.from_numpy(np.repeat(np.arange(len(index)), counts)),
            iou=torch.from_numpy(self._iou[rows]),
            moments=torch.from_numpy(self._moments[rows]),
        )

    def _read(self, video: int) -> Float32:
        name = self.video_ids[video]
        return pre_clips(self._features[name], self.preset, f"features: {self._features.path}: video {name!r}")


def _targets(samples: Sequence[Sample], preset: Preset) -> tuple[Float32, Float32]:
    """The moments of all sentences in a row, as in `Batch`, and their best IoU with every proposal [S, P]."""
    cells = plan_for(preset).cells
    windows, ious = [], []
    for sample in samples:
        proposals = cells_to_moments(cells, sample.duration_s, preset.num_clips)
        for truth in sample.moments_s:
            windows.append(_within(truth.astype(np.float32)))
            ious.append(np.max([temporal_iou(proposals, window) for window in windows[-1]], axis=0))
    most = max(map(len, windows))
    moments = np.stack([np.concatenate([one, np.repeat(one[:1], most - len(one), axis=0)]) for one in windows])
    return (moments[:, 0] if most == 1 else moments), np.array(ious, np.float32)


def _within(windows: Float32) -> Float32:
    """Leave out windows wholly outside the video, which reading has clamped to nothing, unless all are."""
    inside = windows[windows[:, 0] < windows[:, 1]]
    return inside if len(inside) else windows[:1]


def epoch_order(num_videos: int, seed: int, epoch: int) -> Int64:
    """The order of the videos in an epoch: a function of the seed and the epoch alone.

    Seed 0 gives the official order, whose random seed is the epoch's number.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: Int64 = torch.randperm(num_videos, generator=generator).numpy()
    return order


def epoch_parts(order: Int64, batch_size: int, parts: int, as_one: bool = False) -> list[list[Int64]]:
    """Cut an epoch into steps, and each step's batch into parts for processes and accumulation.

    If the number of videos is no multiple of `parts`, the epoch's first videos are repeated at its end.

    Args:
        order: the epoch's videos.
        batch_size: videos per step, a multiple of `parts`.
        parts: parts of a step, none empty.
        as_one: cut each step's batch as if a single process computed it. Otherwise part p goes through block p of the
            epoch's order from beginning to end, like process p of the official code.

    Returns:
        Per step its `parts` arrays of videos.
    """
    order = np.concatenate([order, np.resize(order, -len(order) % parts)])
    if as_one:
        return [np.array_split(order[start : start + batch_size], parts) for start in range(0, len(order), batch_size)]
    blocks, size = order.reshape(parts, -1), batch_size // parts
    return [list(blocks[:, start : start + size]) for start in range(0, blocks.shape[1], size)]


def padded_tokens(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[Int64, Int64]:
    """The word pieces of sentences, int64 [S, L], padded with 0, and their numbers [S]."""
    tokens = tokenizer.encode(list(sentences))
    lengths = np.array([len(ids) for ids in tokens])
    ids_of = np.zeros((len(tokens), lengths.max()), np.int64)
    for row, ids in enumerate(tokens):
        ids_of[row, : len(ids)] = ids
    return ids_of, lengths


def track(items: Iterable[_Item], description: str, progress: bool) -> Iterable[_Item]:
    """Yield the items, with a bar on stderr if progress is shown."""
    if not progress:
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, description, console=Console(stderr=True), transient=True)
