"""Training data of tubes (HC-STVG): every video is a set of tubes, a sentence and the true tube."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmn_fast.arrays import Float32
from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import first_few
from mmn_fast.evaluation.notes import Note, cut_sentences, refuse, say
from mmn_fast.evaluation.tubes import TubeSample, target_iou
from mmn_fast.features import tube_pre_clips
from mmn_fast.geometry import plan_for
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import Tokenizer
from mmn_fast.training.data import padded_tokens, track
from mmn_fast.tubes import Tube

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TubeBatch:
    """Some videos with all of their tubes, and their sentences.

    Attributes:
        pre_clips: float32 [G, T, D], the tubes of all videos in a row.
        token_ids: int64 [V, L], padded with 0.
        lengths: int64 [V], word pieces of each sentence.
        video_of: int64 [G], ascending: index of the tube's video in the batch.
        target: float32 [G, P], vIoU of every proposal's rows with the true tube of its video.
    """

    pre_clips: Tensor
    token_ids: Tensor
    lengths: Tensor
    video_of: Tensor
    target: Tensor

    def to(self, device: torch.device) -> TubeBatch:
        """The batch on a device."""
        return TubeBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


class TubeData:
    """A data set of tubes that gives batches.

    Every sentence counts as a video of its own: the official data has one sentence per video. Videos without tubes are
    left out, as in the official training, and counted in one line.

    Args:
        samples: sentences, each with its video and its true tube.
        tubes: the tubes of every video; a video that is not in it has none.
        preset: sizes and geometry.
        tokenizer: makes word pieces.
        source: the annotations' name in messages.
        cache_gib: pre-clips are kept in memory if all of them take at most this many GiB; otherwise they are read in
            every epoch.
        strict: refuse videos without tubes, and sentences that the text encoder would cut.
        progress: show a progress bar while tubes are read.

    Raises:
        InputError: no video has a tube, `strict` refuses something, or tubes cannot be used (all of them are checked);
            the message names the video and the tube.
    """

    def __init__(
        self,
        samples: Sequence[TubeSample],
        tubes: Mapping[str, Sequence[Tube]],
        preset: Preset,
        tokenizer: Tokenizer,
        source: str = "annotations",
        cache_gib: float = 4.0,
        strict: bool = False,
        progress: bool = False,
    ) -> None:
        self.preset, self._tubes = preset, tubes
        self._cache: dict[str, Float32] | None = {}
        self._distinct: dict[bytes, Float32] = {}
        self._room = cache_gib * 2**30  # bytes
        self.video_ids: list[str] = []
        self._targets: list[Float32] = []  # per sample [K, P]
        sentences, absent = [], []
        for sample in track(samples, "tubes", progress):
            found = tubes.get(sample.video_id, ())
            if not found:
                absent.append(sample.video_id)
                continue
            self._keep(sample.video_id, self._clips(sample.video_id, found))
            self._targets.append(_target(sample, found, preset))
            self.video_ids.append(sample.video_id)
            sentences.append(sample.sentence)
        say_without_tubes(absent, len(samples), source, "features", strict)
        if strict:
            refuse(cut_sentences(tokenizer, sentences))
        self._token_ids, self._lengths = padded_tokens(tokenizer, sentences)
        self.num_sentences = len(sentences)

    def __len__(self) -> int:
        return len(self.video_ids)

    def sentences_in(self, videos: npt.ArrayLike) -> int:
        """The number of sentences of some videos."""
        return len(np.asarray(videos))

    def batch(self, videos: npt.ArrayLike) -> TubeBatch:
        """The batch of some videos, given by their numbers, on the CPU."""
        index = np.asarray(videos, np.int64)
        clips = [self._read(self.video_ids[video]) for video in index]
        lengths = self._lengths[index]
        return TubeBatch(
            pre_clips=torch.from_numpy(np.concatenate(clips)),
            token_ids=torch.from_numpy(self._token_ids[index, : lengths.max()]),
            lengths=torch.from_numpy(lengths),
            video_of=torch.from_numpy(np.repeat(np.arange(len(index)), [len(tubes) for tubes in clips])),
            target=torch.from_numpy(np.concatenate([self._targets[video] for video in index])),
        )

    def _read(self, name: str) -> Float32:
        return self._clips(name, self._tubes[name]) if self._cache is None else self._cache[name]

    def _clips(self, name: str, tubes: Sequence[Tube]) -> Float32:
        """The pre-clips of a video's tubes, float32 [K, T, D]."""
        return np.stack(
            [tube_pre_clips(tube, self.preset, f"video {name!r}: tube {k}") for k, tube in enumerate(tubes)]
        )

    def _keep(self, name: str, clips: Float32) -> None:
        """Keep a video's pre-clips in memory, equal ones once, or those of no video once the room is used up."""
        if self._cache is None or name in self._cache:
            return
        # Entries of several sentences may repeat their video's tubes under names of their own.
        digest = hashlib.sha256(clips.data).digest()
        if digest not in self._distinct:
            self._room -= clips.nbytes
            self._distinct[digest] = clips
        self._cache[name] = self._distinct[digest]
        if self._room < 0:
            self._cache, self._distinct = None, {}


def _target(sample: TubeSample, tubes: Sequence[Tube], preset: Preset) -> Float32:
    """The target of every proposal of a video's tubes, float32 [K, P]."""
    where = f"video {sample.video_id!r}"
    if sample.truth is None:
        raise InputError(f"{where}: expected a true tube, got a sentence alone")
    try:
        target = target_iou(tubes, sample.truth, preset.num_clips)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    cells = plan_for(preset).cells
    return target[:, cells[:, 0], cells[:, 1]]


def say_without_tubes(absent: Sequence[str], total: int, source: str, argument: str, strict: bool) -> None:
    """Warn in one line of videos without tubes, which are left out.

    Args:
        absent: ids of these videos.
        total: how many videos there are.
        source: the annotations' name in messages.
        argument: name of the tubes' argument in messages.
        strict: refuse instead.

    Raises:
        InputError: no video has a tube, or `strict` and there is such a video.
    """
    if not absent:
        return
    few = first_few(list(dict.fromkeys(absent)))
    if len(absent) == total:
        raise InputError(f"{argument}: none of the {total} videos of {source} has a tube: {few}")
    note = Note("left_out", "videos", len(absent), total, "they have no tubes, as in the official code", few)
    if strict:
        refuse([note])
    say(logger, source, (note,))
