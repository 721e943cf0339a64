"""Joint-space embeddings of videos and sentences: values to keep, save and score later.

Symbols: B videos, S sentences, P proposals, J joint width.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, described
from mmn_fast.checks import Each, Number, Rule, Text, check_keys
from mmn_fast.errors import InputError
from mmn_fast.storage.checksums import array_digests, plain_sha256
from mmn_fast.storage.documents import parse_json
from mmn_fast.storage.files import write_whole
from mmn_fast.tubes import Track, check_track

_CHECKSUM = "sha256"  # metadata key of the checksum over the arrays and the rest of the metadata
_ITEM_RULES: dict[str, Rule] = {
    "durations_s": Number(0, above=True),
    "video_ids": Text(least=0, most=2**20),
    "sentences": Text(least=0, most=2**26),
}
_MAX_WINDOWS = 10_000_000
_SECONDS = Number(0)


def _window(value: object, where: str) -> tuple[float, float]:
    """Rule for the start and the length of a window."""
    start_s, length_s = Each(_SECONDS, least=2, most=2)(value, where)
    return start_s, _ITEM_RULES["durations_s"](length_s, where)


_Self = TypeVar("_Self", bound="_Embeddings")


@dataclass(frozen=True, eq=False, repr=False)
class _Embeddings:
    """Two arrays of unit vectors with one entry per item, and the model that made them."""

    contrastive: Float32
    iou: Float32
    fingerprint: str

    _kind: ClassVar[str]
    _per_item: ClassVar[tuple[str, ...]]
    _axes: ClassVar[int]

    def __len__(self) -> int:
        return len(self.contrastive)

    def __iter__(self: _Self) -> Iterator[_Self]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self: _Self, index: int | slice | Sequence[int] | Sequence[bool]) -> _Self:
        """Select items, as new embeddings; an integer selects one item and keeps the axis.

        Args:
            index: an item's number, a slice, numbers of items, or one bool per item.

        Raises:
            IndexError: an item does not exist.
        """
        chosen = index if isinstance(index, slice) else np.atleast_1d(index if np.size(index) else np.empty(0, np.intp))
        items = np.arange(len(self))[chosen].tolist()
        extra = {name: tuple(getattr(self, name)[i] for i in items) for name in self._per_item} | self._more_of(items)
        rows = self._rows_of(items)
        return type(self)(contrastive=self.contrastive[rows], iou=self.iou[rows], fingerprint=self.fingerprint, **extra)

    def _rows_of(self, items: list[int]) -> list[int]:
        """The rows of the arrays that hold some items."""
        return items

    def _more_of(self, items: list[int]) -> dict[str, Any]:
        """Fields of some items that `_per_item` does not name."""
        return {}

    @classmethod
    def _more_of_parts(cls: type[_Self], parts: Sequence[_Self]) -> dict[str, Any]:
        """Fields of joined parts that `_per_item` does not name."""
        return {}

    def __repr__(self) -> str:
        names = reprlib.repr(list(getattr(self, self._per_item[-1])))
        return f"{type(self).__name__}({described(self.contrastive)}, model {self.fingerprint}, {names})"

    @classmethod
    def concatenate(cls: type[_Self], parts: Iterable[_Self]) -> _Self:
        """Join embeddings of one model, item after item; `a + b` joins two.

        Args:
            parts: at least one part, all made by one model. The result is read-only if all parts are read-only.

        Raises:
            InputError: there is no part, a part is no embeddings of this kind, or two parts come from different models.
        """
        parts = list(parts)
        if not parts:
            raise InputError(f"parts: expected at least one {cls.__name__}, got none")
        first = parts[0]
        for number, part in enumerate(parts):
            if not isinstance(part, cls):
                raise InputError(f"parts[{number}]: expected {cls.__name__}, got {type(part).__name__}")
            if part.fingerprint != first.fingerprint:
                raise InputError(
                    f"parts[{number}]: expected embeddings of model {first.fingerprint}, as in the parts before, got"
                    f" model {part.fingerprint}"
                )
            if part.contrastive.shape[1:] != first.contrastive.shape[1:]:
                raise InputError(
                    f"parts[{number}]: expected {described(first.contrastive)}, as in the parts before, got"
                    f" {described(part.contrastive)}"
                )
        contrastive, iou = (np.concatenate([getattr(part, name) for part in parts]) for name in ("contrastive", "iou"))
        contrastive.flags.writeable = any(part.contrastive.flags.writeable for part in parts)
        iou.flags.writeable = any(part.iou.flags.writeable for part in parts)
        extra = {name: tuple(value for part in parts for value in getattr(part, name)) for name in cls._per_item}
        extra |= cls._more_of_parts(parts)
        return cls(contrastive=contrastive, iou=iou, fingerprint=first.fingerprint, **extra)

    def __add__(self: _Self, other: _Self) -> _Self:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.concatenate([self, other])

    def save(self, path: str | Path) -> None:
        """Write the embeddings to a safetensors file; the file appears whole or not at all.

        Args:
            path: file to write; an existing file is replaced.

        Raises:
            InputError: the file cannot be written.
        """
        from safetensors.numpy import save

        meta = {"kind": self._kind, "fingerprint": self.fingerprint}
        meta |= {name: json.dumps(getattr(self, name)) for name in (*self._texts(), *self._texts_if_any())}
        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
        meta[_CHECKSUM] = _checksum(arrays, meta)
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
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: not a readable safetensors file ({error})") from None
        found = meta.pop(_CHECKSUM, None)
        if found is None:
            raise InputError(f"{path}: written by a version without checksums; encode again and save()")
        if found != _checksum(arrays, meta):
            raise InputError(f"{path} is damaged: its checksum differs; copy it again, or encode again and save()")
        return cls._from_file(arrays, meta, str(path))

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What `save` writes as arrays."""
        return {"contrastive": self.contrastive, "iou": self.iou}

    @classmethod
    def _texts(cls) -> tuple[str, ...]:
        """The fields that `save` writes as text."""
        return cls._per_item

    def _texts_if_any(self) -> tuple[str, ...]:
        """Fields that `save` writes as text only if they say something."""
        return ()

    @classmethod
    def _from_file(
        cls: type[_Self],
        arrays: Mapping[str, Any],
        meta: Mapping[str, str],
        where: str,
        items: int | None = None,
        **more: Any,
    ) -> _Self:
        """Check a file's content and make embeddings from it, and from the fields that a subclass has read.

        `items` is the number of items; None means one per row of the arrays.
        """
        check_keys(arrays, ("contrastive", "iou"), where)
        meta = check_keys(meta, ("kind", "fingerprint", *cls._texts()), where)
        shape = arrays["contrastive"].shape
        count = shape[0] if items is None else items
        for name, array in arrays.items():
            if array.dtype != np.float32 or array.ndim != cls._axes or array.shape != shape:
                expected = f"float32 of {cls._axes} axes, both branches alike"
                raise InputError(f"{where}: {name}: expected {expected}, got {array.dtype} {list(array.shape)}")
            if not np.isfinite(array).all():
                raise InputError(f"{where}: {name} holds NaN or infinite values")
        per_item = dict(more)
        for name in cls._texts():
            rule = Each(_ITEM_RULES[name], least=count, most=count)
            per_item[name] = rule(parse_json(meta[name], f"{where}: {name}"), f"{where}: {name}")
        fingerprint = Text()(meta["fingerprint"], f"{where}: fingerprint")
        return cls(contrastive=arrays["contrastive"], iou=arrays["iou"], fingerprint=fingerprint, **per_item)


def _checksum(arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, str]) -> str:
    return plain_sha256({**meta, "arrays": array_digests(arrays)})


@dataclass(frozen=True, eq=False, repr=False)
class VideoEmbeddings(_Embeddings):
    """Joint-space embeddings of every proposal of some videos.

    The items are videos. A video that was cut into windows has a row of the arrays per window, one after the other;
    without windows W is B.

    Attributes:
        contrastive: float32 [W, P, J], unit norm over J.
        iou: float32 [W, P, J], unit norm over J.
        fingerprint: identifies the model; embeddings of two models are never scored together.
        durations_s: one duration in seconds per video.
        video_ids: one name per video.
        windows: per video the (start, length) of each of its windows, seconds; empty if no video was cut.
    """

    durations_s: tuple[float, ...] = field(default=())
    video_ids: tuple[str, ...] = field(default=())
    windows: tuple[tuple[tuple[float, float], ...], ...] = field(default=())

    _kind: ClassVar[str] = "mmn_fast video embeddings"
    _per_item: ClassVar[tuple[str, ...]] = ("durations_s", "video_ids")
    _axes: ClassVar[int] = 3

    def __len__(self) -> int:
        return len(self.windows) or len(self.contrastive)

    @property
    def spans(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """`windows`; a video that was not cut is one window from 0 to its end."""
        return self.windows or tuple(((0.0, duration_s),) for duration_s in self.durations_s)

    def _rows_of(self, items: list[int]) -> list[int]:
        if not self.windows:
            return items
        ends = np.cumsum([len(spans) for spans in self.windows]).tolist()
        return [row for item in items for row in range(ends[item] - len(self.windows[item]), ends[item])]

    def _more_of(self, items: list[int]) -> dict[str, Any]:
        return {"windows": tuple(self.windows[item] for item in items) if self.windows else ()}

    @classmethod
    def _more_of_parts(cls, parts: Sequence[VideoEmbeddings]) -> dict[str, Any]:
        cut = any(part.windows for part in parts)
        return {"windows": tuple(spans for part in parts for spans in part.spans) if cut else ()}

    def _texts_if_any(self) -> tuple[str, ...]:
        return ("windows",) if self.windows else ()

    @classmethod
    def _from_file(
        cls, arrays: Mapping[str, Any], meta: Mapping[str, str], where: str, items: int | None = None, **more: Any
    ) -> VideoEmbeddings:
        if "windows" not in meta:
            return super()._from_file(arrays, meta, where)
        meta, where_windows = dict(meta), f"{where}: windows"
        rule = Each(Each(_window, most=_MAX_WINDOWS), most=_MAX_WINDOWS)
        windows = rule(parse_json(meta.pop("windows"), where_windows), where_windows)
        rows = sum(map(len, windows))
        if rows != len(arrays.get("contrastive", ())):
            found = len(arrays.get("contrastive", ()))
            raise InputError(f"{where_windows}: expected as many windows as rows of the arrays, {found}, got {rows}")
        return super()._from_file(arrays, meta, where, items=len(windows), windows=windows)


@dataclass(frozen=True, eq=False, repr=False)
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
    _axes: ClassVar[int] = 2


@dataclass(frozen=True, eq=False, repr=False)
class TubeEmbeddings(_Embeddings):
    """Joint-space embeddings of every proposal of one video's tubes.

    Attributes:
        contrastive: float32 [K, P, J], unit norm over J.
        iou: float32 [K, P, J], unit norm over J.
        fingerprint: identifies the model; embeddings of two models are never scored together.
        tracks: per tube its frame numbers, int64 [n], and boxes, float32 or float64 [n, 4].
        video_ids: per tube the name of its video.
    """

    tracks: tuple[Track, ...] = field(default=())
    video_ids: tuple[str, ...] = field(default=())

    _kind: ClassVar[str] = "mmn_fast tube embeddings"
    _per_item: ClassVar[tuple[str, ...]] = ("tracks", "video_ids")
    _axes: ClassVar[int] = 3

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        frames, boxes = [frames for frames, _ in self.tracks], [boxes for _, boxes in self.tracks]
        return {
            **super()._arrays(),
            "frames": np.concatenate([np.empty(0, np.int64), *frames]),
            "boxes": np.concatenate([np.empty((0, 4), np.float32), *boxes]),
            "rows": np.array([len(track) for track in frames], np.int64),
        }

    @classmethod
    def _texts(cls) -> tuple[str, ...]:
        return ("video_ids",)

    @classmethod
    def _from_file(
        cls, arrays: Mapping[str, Any], meta: Mapping[str, str], where: str, items: int | None = None, **more: Any
    ) -> TubeEmbeddings:
        check_keys(arrays, ("contrastive", "iou", "frames", "boxes", "rows"), where)
        rest = {name: arrays[name] for name in ("contrastive", "iou")}
        rows, frames = arrays["rows"], arrays["frames"]
        if rows.dtype != np.int64 or rows.shape != rest["iou"].shape[:1] or (rows < 1).any():
            raise InputError(f"{where}: rows: expected int64 [{len(rest['iou'])}] >= 1, got {described(rows)}")
        if frames.shape != (rows.sum(),):
            raise InputError(f"{where}: frames: expected int64 [{rows.sum()}], got {described(frames)}")
        ends, tracks = np.cumsum(rows).tolist(), []
        for number, end in enumerate(ends):
            span = slice(end - int(rows[number]), end)
            tracks.append(check_track(frames[span], arrays["boxes"][span], f"{where}: tube {number}"))
        return super()._from_file(rest, meta, where, tracks=tuple(tracks), **more)


def check_embeddings(embeddings: object, kind: type[_Embeddings], name: str, fingerprint: str) -> None:
    """Refuse what is not embeddings of one kind and model.

    Args:
        embeddings: the value to check.
        kind: what it must be.
        name: the argument's name in messages.
        fingerprint: the model's.

    Raises:
        InputError: another value, or embeddings of another model.
    """
    if not isinstance(embeddings, kind):
        raise InputError(f"{name}: expected {kind.__name__}, got {type(embeddings).__name__}")
    if embeddings.fingerprint != fingerprint:
        raise InputError(
            f"{name}: expected embeddings of this engine's model, {fingerprint}, got model {embeddings.fingerprint}"
        )
