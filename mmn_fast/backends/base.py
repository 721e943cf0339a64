"""The interface of a backend: the model's three seams on one device, in one precision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mmn_fast.arrays import Float32, Int32, Int64
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.errors import InputError
from mmn_fast.features import pre_clips
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.postprocess import fuse_scores, select_moments
from mmn_fast.presets import Preset
from mmn_fast.request import Request

Branches = tuple[Float32, Float32]
"""A contrastive and an iou array of equal shape."""

Selection = tuple[Int32, Float32]
"""Chosen proposals of each sentence, int32 [S, top_k], best first, then -1, and their fused scores [S, top_k]."""

PAIRS_AT_ONCE = 64
"""Most pairs of one selection. This bounds the memory of their moments; results do not depend on it."""


@dataclass(frozen=True)
class Settings:
    """The device, precision, threads and options of a backend.

    Attributes:
        device: "cpu", "cuda", "cuda:N" or "auto"; a device that `unavailable_reason` accepts.
        precision: a precision that `unavailable_reason` accepts, or "auto" for the backend's default.
        threads: CPU threads, >= 1; None leaves the process's setting alone.
        options: the backend's own settings, by their names in `OPTIONS`; `read_options` checks their values.
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))  # a mapping proxy cannot be pickled

    def precision_or(self, default: str) -> str:
        """The precision; `default` if it is "auto"."""
        return default if self.precision == "auto" else self.precision


@dataclass(frozen=True)
class Option:
    """A setting of one backend, in addition to the common settings.

    Attributes:
        meaning: its effect, in a phrase.
        default: its default value.
        expected: the accepted values in words, for messages.
        accepts: whether a value is accepted.
    """

    meaning: str
    default: Any
    expected: str
    accepts: Callable[[Any], bool]

    @classmethod
    def flag(cls, meaning: str, default: bool = False) -> Option:
        """Make an option that is true or false."""
        return cls(meaning, default, "true or false", lambda value: isinstance(value, bool))

    @classmethod
    def whole_mib(cls, meaning: str, default: int) -> Option:
        """Make an option for memory in whole MiB."""
        return cls(meaning, default, "a whole number of MiB >= 0", lambda value: _number(value, int))

    @classmethod
    def mib_or_none(cls, meaning: str) -> Option:
        """Make an option for memory in MiB; None sets no limit."""
        return cls(meaning, None, "a number of MiB >= 0", lambda value: value is None or _number(value, (int, float)))

    @classmethod
    def one_of(cls, meaning: str, names: Mapping[str, Any], default: str) -> Option:
        """Make an option that takes one of some names."""
        return cls(
            meaning, default, f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names
        )


def _number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(value >= 0)


class Backend(ABC):
    """Runs a model. An item's result does not depend on the rest of the call.

    Args:
        model: the model's values.
        settings: the device, precision, threads and options.

    Raises:
        InputError: an option does not accept its value.
    """

    name: ClassVar[str]
    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """This backend's own settings, in addition to the common settings."""
    takes_exports: ClassVar[bool] = False
    """Whether this backend runs the graphs of an export (`LoadedModel.exported`) instead of weights."""
    only_by_name: ClassVar[str | None] = None
    """Why "auto" never takes this backend, in one sentence; None if it may."""

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        self._arguments = model, settings
        self.preset: Preset = model.preset
        self.threads = settings.threads
        self.options = self.read_options(settings.options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments; everything made from them belongs to this process."""
        return type(self), self._arguments

    @classmethod
    @abstractmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        """Why this backend cannot run here on this device in this precision, as a sentence; None if it can.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N".
            precision: "auto" or one of `precisions.PRECISIONS`.
        """

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse settings that this backend does not have.

        Raises:
            InputError: an unknown name.
        """
        for name in options:
            if name not in cls.OPTIONS:
                known = ", ".join(cls.OPTIONS) or "none"
                raise InputError(f"backend_options: backend {cls.name!r} has {known}, got {name!r}")

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The given or default value of every setting in `OPTIONS`.

        Raises:
            InputError: an option does not accept its value.
        """
        values = {name: options.get(name, option.default) for name, option in cls.OPTIONS.items()}
        for name, value in values.items():
            if not cls.OPTIONS[name].accepts(value):
                raise InputError(f"backend_options: {name}: expected {cls.OPTIONS[name].expected}, got {value!r}")
        return values

    def with_threads(self, threads: int) -> Backend | None:
        """Share this backend's memory with another number of CPU threads; None if the number is fixed."""
        return None

    @abstractmethod
    def encode_video(self, pre_clips: Float32) -> Branches:
        """Embed every proposal of some videos.

        Args:
            pre_clips: float32 [B, T, D], B >= 0.

        Returns:
            float32 [B, P, J] twice, unit norm over J.
        """

    @abstractmethod
    def encode_text(self, token_ids: Sequence[Int64]) -> Branches:
        """Embed sentences.

        Args:
            token_ids: int64 [L_s] per sentence, not padded.

        Returns:
            float32 [S, J] twice, unit norm over J.
        """

    @abstractmethod
    def score(self, video: Branches, text: Branches) -> Branches:
        """Match sentences with the proposals of one video.

        Args:
            video: float32 [P, J] twice, unit norm.
            text: float32 [S, J] twice, unit norm.

        Returns:
            contrastive [S, P], the cosine, and iou [S, P], sigmoid(10 cosine); float32.
        """

    def top_moments(self, video: Branches, text: Branches, moments: Float32, top_k: int) -> Selection:
        """Choose every sentence's best moments in one video, after fusion and non-maximum suppression.

        Args:
            video: float32 [P, J] twice, unit norm.
            text: float32 [S, J] twice, unit norm.
            moments: float32 [P, 2], start and end of each proposal in seconds.
            top_k: moments per sentence, >= 1.

        Returns:
            The choice of `select_moments`, and the fused scores of the chosen moments (0 where the choice is -1).
        """
        fused = fuse_scores(*self.score(video, text), self.preset)
        chosen = select_moments(fused, moments, self.preset.nms_iou, top_k, self.threads)
        return chosen, np.where(chosen >= 0, np.take_along_axis(fused, np.maximum(chosen, 0), 1), np.float32(0))

    def top_moments_of_pairs(
        self, pairs: Sequence[tuple[Branches, Branches]], moments: Float32, top_k: int
    ) -> Selection:
        """Choose the best moments of several videos, each for its own sentences; by default pair by pair.

        Args:
            pairs: per pair its video and its sentences, as for `top_moments`.
            moments: float32 [B, P, 2], start and end of each proposal in each pair's video, seconds.
            top_k: moments per sentence, >= 1.

        Returns:
            As `top_moments`, for all sentences, pair after pair.
        """
        if not pairs:
            return np.empty((0, top_k), np.int32), np.empty((0, top_k), np.float32)
        found = [self.top_moments(*pair, spans, top_k) for pair, spans in zip(pairs, moments, strict=True)]
        chosen, scores = zip(*found, strict=True)
        return np.concatenate(chosen), np.concatenate(scores)

    def video_input(self, features: Any, name: str) -> Float32:
        """Check a video's features and make the array that `ground` takes: by default the pre-clips.

        Args:
            features: float [n_src, D], see `features.check_features`.
            name: the features' name in messages.

        Returns:
            float32 [T, D], C-contiguous.

        Raises:
            InputError: the features cannot be used.
        """
        return pre_clips(features, self.preset, name)

    def embed(self, request: Request) -> Iterator[tuple[int, Branches, Branches]]:
        """Encode a request's videos, block by block, and its sentences.

        Args:
            request: a request whose videos are pre-clips, float32 [T, D].

        Yields:
            Per query with sentences: its number, its video float32 [P, J] twice, its sentences float32 [S, J] twice.
        """
        for block in self._embed_blocks(request):
            yield from block

    def _embed_blocks(self, request: Request) -> Iterator[list[tuple[int, Branches, Branches]]]:
        """As `embed`; yields the queries of a block together."""
        rows = request.pairs.sentences
        text = [branch[rows] for branch in self.encode_text(request.token_ids)]
        for block in request.blocks():
            contrastive, iou = self.encode_video(np.stack(block.videos))
            found = []
            for row, number in block.queries:
                span = request.spans[number]
                found.append((number, (contrastive[row], iou[row]), (text[0][span], text[1][span])))
            yield found

    def ground(self, request: Request, top_k: int) -> Selection:
        """Choose the best moments of every pair of a video and a sentence, by default block by block.

        A backend that keeps a whole request on its device overrides this method.

        Args:
            request: a request whose videos are arrays from `video_input`.
            top_k: moments per pair, >= 1.

        Returns:
            As `top_moments`, int32 [Q, top_k] and float32 [Q, top_k].

        Raises:
            InputError: scores are not finite, because the precision cannot hold the model's values.
            MemoryError: the device has too little memory; the message names the program, and the backend stays usable.
        """
        cells, durations = plan_for(self.preset).cells, request.pairs.durations
        chosen = np.empty((len(durations), top_k), np.int32)
        scores = np.empty((len(durations), top_k), np.float32)
        for block in self._embed_blocks(request):
            for first in range(0, len(block), PAIRS_AT_ONCE):
                queries = block[first : first + PAIRS_AT_ONCE]
                spans = [request.spans[number] for number, _, _ in queries]
                lengths = durations[[span.start for span in spans], None, None]
                moments = cells_to_moments(cells, lengths, self.preset.num_clips)
                found = self.top_moments_of_pairs([(video, text) for _, video, text in queries], moments, top_k)
                rows = np.r_[tuple(spans)]
                chosen[rows], scores[rows] = found
        return chosen, scores

    def warmup(  # noqa: B027 - most backends have nothing to prepare
        self, videos: Sequence[int], sentences: Sequence[int], tokens: Sequence[int], rows: Sequence[int], top_k: int
    ) -> None:
        """Prepare for requests of every combination of these sizes, so that the first request is not slow.

        Args:
            videos: distinct videos in a request.
            sentences: distinct sentences in a request.
            tokens: word pieces of a request's longest sentence.
            rows: clip features of each video.
            top_k: moments per sentence.
        """

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Facts about this backend for `Engine.info`: at least device and precision."""
