"""The values that go in and come out: videos, queries, moments, embeddings and score maps.

Nothing here computes; arrays are NumPy so that results can be pickled, saved and moved between
processes whatever backend made them. Symbols: B videos, S sentences, P proposals, J joint width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class InputError(ValueError):
    """The caller's input cannot be used; the message names the argument, what was expected and what came."""


class BackendUnavailable(RuntimeError):  # noqa: N818 - reads as the sentence it is
    """An explicitly requested backend, device or precision cannot run here; the message says why."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder.

    Attributes:
        vocab_size: word pieces.
        max_tokens: longest input in word pieces, [CLS] and [SEP] included.
        width: H, hidden width.
        num_layers: transformer layers.
        num_heads: attention heads; divides H.
        ffn_width: inner width of the feed-forward blocks.
    """

    vocab_size: int = 30522
    max_tokens: int = 512
    width: int = 768
    num_layers: int = 6
    num_heads: int = 12
    ffn_width: int = 3072

    NORM_EPS: ClassVar[float] = 1e-12
    """Epsilon of every LayerNorm in the published DistilBERT."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A span of a video that a sentence describes.

    Attributes:
        start_s: start in seconds.
        end_s: end in seconds.
        score: fused score of the proposal, higher is better (0 to 1 for the power fusion).
    """

    start_s: float
    end_s: float
    score: float

    def to_dict(self) -> dict[str, float]:
        """`{"start_s": ..., "end_s": ..., "score": ...}`, ready for `json.dumps`."""
        return {"start_s": self.start_s, "end_s": self.end_s, "score": self.score}


@dataclass(frozen=True, eq=False)
class Video:
    """A video as its clip features.

    Attributes:
        features: float [n_src, D], NumPy or torch, any float dtype, any strides, n_src >= 1: the
            extractor's rows in temporal order, not normalised (the engine does that).
        duration_s: length of the video in seconds, > 0.
        video_id: name used in messages and predictions.
    """

    features: Any
    duration_s: float
    video_id: str = ""


@dataclass(frozen=True, eq=False)
class Query:
    """One video and the sentences to ground in it.

    Attributes:
        video: the video.
        sentences: any number of sentences, each a str.
    """

    video: Video
    sentences: Sequence[str]


@dataclass(frozen=True, eq=False)
class ScoreMaps:
    """Every proposal's scores for the sentences of one video, packed.

    Behaves as a mapping too, so `np.savez(path, **maps)` stores it.

    Attributes:
        contrastive: float32 [S, P], cosine of the contrastive branch, -1 to 1.
        iou: float32 [S, P], sigmoid(10 cosine) of the iou branch, 0 to 1.
        fused: float32 [S, P], the score that ranks moments.
        cells: int32 [P, 2], the proposals (i, j) in row-major order: clips i to j, both included.
    """

    contrastive: FloatArray
    iou: FloatArray
    fused: FloatArray
    cells: npt.NDArray[np.int32]

    def keys(self) -> list[str]:
        """The names of the arrays."""
        return [f.name for f in fields(self)]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.keys():
            raise KeyError(name)
        array: npt.NDArray[Any] = getattr(self, name)
        return array


_Self = TypeVar("_Self", bound="_Embeddings")


@dataclass(frozen=True, eq=False)
class _Embeddings:
    """Two arrays of unit vectors with one entry per item, and the model that made them."""

    contrastive: FloatArray
    iou: FloatArray
    fingerprint: str

    _kind: ClassVar[str]
    _per_item: ClassVar[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.contrastive)

    def __iter__(self: _Self) -> Iterator[_Self]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self: _Self, index: int | slice | Sequence[int] | Sequence[bool]) -> _Self:
        """The selected items, as embeddings of their own (an integer selects one item and keeps the axis).

        Args:
            index: one item, a slice, numbers of items, or whether to take each item.

        Raises:
            IndexError: no such item.
        """
        chosen = index if isinstance(index, slice) else np.atleast_1d(index if np.size(index) else np.empty(0, np.intp))
        rows = np.arange(len(self))[chosen].tolist()
        extra = {name: tuple(getattr(self, name)[i] for i in rows) for name in self._per_item}
        return type(self)(contrastive=self.contrastive[rows], iou=self.iou[rows], fingerprint=self.fingerprint, **extra)

    def save(self, path: str | Path) -> None:
        """Write the embeddings to a safetensors file; it appears whole or not at all.

        Args:
            path: file to write; an existing one is replaced.

        Raises:
            InputError: it cannot be written.
        """
        from safetensors.numpy import save

        from mmn_fast.files import write_whole

        meta = {"kind": self._kind, "fingerprint": self.fingerprint}
        meta |= {name: json.dumps(getattr(self, name)) for name in self._per_item}
        arrays = {"contrastive": np.ascontiguousarray(self.contrastive), "iou": np.ascontiguousarray(self.iou)}
        write_whole(path, save(arrays, metadata=meta), overwrite=True)

    @classmethod
    def load(cls: type[_Self], path: str | Path) -> _Self:
        """Read embeddings that `save` wrote.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                meta = file.metadata() or {}
                if meta.get("kind") != cls._kind:
                    raise InputError(f"{path}: expected {cls._kind} written by save(), got kind {meta.get('kind')!r}")
                arrays = {name: file.get_tensor(name) for name in ("contrastive", "iou")}
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error})") from None
        extra = {name: tuple(json.loads(meta[name])) for name in cls._per_item}
        return cls(contrastive=arrays["contrastive"], iou=arrays["iou"], fingerprint=meta["fingerprint"], **extra)


@dataclass(frozen=True, eq=False)
class VideoEmbeddings(_Embeddings):
    """Joint-space embeddings of every proposal of some videos.

    Attributes:
        contrastive: float32 [B, P, J], unit norm over J.
        iou: float32 [B, P, J], unit norm over J.
        fingerprint: identifies the model; embeddings of two models are never scored together.
        durations_s: one duration in seconds per video.
        video_ids: one name per video.
    """

    durations_s: tuple[float, ...] = field(default=())
    video_ids: tuple[str, ...] = field(default=())

    _kind: ClassVar[str] = "mmn_fast video embeddings"
    _per_item: ClassVar[tuple[str, ...]] = ("durations_s", "video_ids")


@dataclass(frozen=True, eq=False)
class TextEmbeddings(_Embeddings):
    """Joint-space embeddings of some sentences.

    Attributes:
        contrastive: float32 [S, J], unit norm over J.
        iou: float32 [S, J], unit norm over J.
        fingerprint: identifies the model; embeddings of two models are never scored together.
        sentences: the sentences.
    """

    sentences: tuple[str, ...] = field(default=())

    _kind: ClassVar[str] = "mmn_fast text embeddings"
    _per_item: ClassVar[tuple[str, ...]] = ("sentences",)
