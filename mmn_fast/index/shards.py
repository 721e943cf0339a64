"""Shards: files of videos that are written once, never changed, and read as memory maps.

A shard is a safetensors file with these arrays, for R = windows x P rows of J values, one window after another:

    catalogue    uint8 [n]            ids, durations and windows of the shard's videos, and a bound of the
                                      rows' lengths, as JSON, padded with spaces
    *.steps      float32 [R, 2]       int8 storage only, for both branches: see `kernels.cpu.search.Codes`
    contrastive  float16 or float32 [R, J]
    iou          float16 or float32 [R, J]
    *.codes      int8 [R, J]          int8 storage only, for both branches

Header and catalogue stand first; their checksum is checked whenever an index is opened. safetensors' own loader copies
arrays into memory, so the arrays are views of one memory map instead.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Float64, Int64
from mmn_fast.errors import InputError
from mmn_fast.index.manifest import SHARDS, Manifest, ShardRecord
from mmn_fast.kernels.cpu.search import Codes, StoredRows, longest, quantise
from mmn_fast.storage.checksums import chunked_sha256
from mmn_fast.storage.documents import parse_json
from mmn_fast.storage.files import whole_file

Rows = dict[str, npt.NDArray[Any]]
"""Arrays of some rows by their names in a shard."""

_LAYOUTS: dict[str, dict[str, type[np.generic]]] = {
    "fp32": {"contrastive": np.float32, "iou": np.float32},
    "fp16": {"contrastive": np.float16, "iou": np.float16},
    "int8": {
        "contrastive.steps": np.float32,
        "iou.steps": np.float32,
        "contrastive": np.float16,
        "iou": np.float16,
        "contrastive.codes": np.int8,
        "iou.codes": np.int8,
    },
}
_BRANCHES = ("contrastive", "iou")
_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
_ALIGNED = 64  # the contrastive rows begin at a multiple of this many bytes: a cache line
_ADVICE = "copy the index again, or let `mmn-fast index verify --drop-damaged` take the file out of it"


class Entry(NamedTuple):
    """A video on its way into a shard.

    Attributes:
        video_id: its name.
        duration_s: its length in seconds.
        windows: start and length of each window, seconds; one from 0 to the end if the video was not cut.
        rows: its rows, see `stored`.
        norm: at least the Euclidean length of every row of both branches.
    """

    video_id: str
    duration_s: float
    windows: tuple[tuple[float, float], ...]
    rows: Rows
    norm: float

    @property
    def num_bytes(self) -> int:
        """Size of the rows."""
        return sum(array.nbytes for array in self.rows.values())


def _width(name: str, joint_size: int) -> int:
    """Values per row of an array."""
    return 2 if name.endswith(".steps") else joint_size


def _codes_by_name(branch: str, codes: Codes | None) -> Rows:
    return {} if codes is None else {f"{branch}.{name}": array for name, array in codes._asdict().items()}


def bytes_per_row(storage: str, joint_size: int) -> int:
    """Size of one proposal in a shard."""
    return sum(np.dtype(kind).itemsize * _width(name, joint_size) for name, kind in _LAYOUTS[storage].items())


def stored(contrastive: Float32, iou: Float32, storage: str, where: str) -> Rows:
    """Convert embeddings to rows of a shard.

    Args:
        contrastive: float32 [W, P, J], finite.
        iou: float32 [W, P, J], finite.
        storage: one of `manifest.STORAGES`.
        where: name of the video in messages.

    Raises:
        InputError: a value is beyond float16.
    """
    kinds = _LAYOUTS[storage]
    rows: Rows = {}
    for name, array in (("contrastive", contrastive), ("iou", iou)):
        with np.errstate(over="ignore"):
            rows[name] = np.ascontiguousarray(array.reshape(-1, array.shape[-1]), kinds[name])
        if not np.isfinite(rows[name]).all():
            raise InputError(f"{where}: {name}: expected unit vectors, got values beyond float16")
    if storage == "int8":
        for branch in _BRANCHES:
            rows |= _codes_by_name(branch, quantise(rows[branch]))
    return rows


def _by_name(rows: StoredRows) -> Rows:
    """Stored rows as the arrays of a shard."""
    branches: Rows = {"contrastive": rows.contrastive, "iou": rows.iou}
    return branches | _codes_by_name("contrastive", rows.contrastive_codes) | _codes_by_name("iou", rows.iou_codes)


def _stored_rows(arrays: Rows, norm: float) -> StoredRows:
    """The opposite of `_by_name`."""
    codes = [
        Codes(arrays[f"{branch}.codes"], arrays[f"{branch}.steps"]) if f"{branch}.codes" in arrays else None
        for branch in _BRANCHES
    ]
    return StoredRows(arrays["contrastive"], arrays["iou"], norm, codes[0], codes[1])


def norm_of(rows: Rows) -> float:
    """At least the Euclidean length of every row of both branches."""
    return float(max(longest(rows["contrastive"]), longest(rows["iou"])))


def decoded(rows: npt.NDArray[Any]) -> Float32:
    """Stored rows as the float32 values that they stand for."""
    return np.ascontiguousarray(rows, np.float32)


def write_shard(path: Path, manifest: Manifest, entries: Sequence[Entry]) -> ShardRecord:
    """Write a shard; until a manifest names it, nobody reads it and the next writer removes it.

    Args:
        path: the index.
        manifest: the index's.
        entries: the videos, at least one; their rows may be memory maps.

    Raises:
        WriteError: the system refuses; nothing is left of the file.
    """
    num_windows = sum(len(entry.windows) for entry in entries)
    head, arrays = _head(manifest, entries, num_windows * manifest.num_proposals)
    name = f"{manifest.generation + 1:08d}-{secrets.token_hex(4)}.safetensors"
    file = path / SHARDS / name
    size = len(head)
    with whole_file(file, "index", durable=True) as out:
        out.write(head)
        for array in arrays:
            for entry in entries:
                size += out.write(np.ascontiguousarray(entry.rows[array]).data.cast("B"))
    return ShardRecord(
        file=name,
        num_bytes=size,
        head_bytes=len(head),
        head_sha256=hashlib.sha256(head).hexdigest(),
        sha256=chunked_sha256(file, size),
        num_videos=len(entries),
        num_windows=num_windows,
    )


def _head(manifest: Manifest, entries: Sequence[Entry], num_rows: int) -> tuple[bytes, list[str]]:
    """Header and catalogue of a shard, and the names of the arrays that follow."""
    layout = _LAYOUTS[manifest.storage]
    catalogue = json.dumps(
        {
            "video_ids": [entry.video_id for entry in entries],
            "durations_s": [entry.duration_s for entry in entries],
            "windows": [entry.windows for entry in entries],
            "norm": max(entry.norm for entry in entries),
        }
    ).encode()
    shapes = {
        name: (np.dtype(kind), [num_rows, _width(name, manifest.preset.joint_size)]) for name, kind in layout.items()
    }
    before = sum(4 * 2 * num_rows for name in layout if name.endswith(".steps"))  # bytes between catalogue and rows
    catalogue += b" " * (-(len(catalogue) + before) % _ALIGNED)
    shapes = {"catalogue": (np.dtype(np.uint8), [len(catalogue)]), **shapes}
    at, tensors = 0, {}
    for name, (dtype, shape) in shapes.items():
        end = at + dtype.itemsize * int(np.prod(shape))
        tensors[name] = {"dtype": _NAMES[dtype.name], "shape": shape, "data_offsets": [at, end]}
        at = end
    header = json.dumps(tensors).encode()
    header += b" " * (-(len(header) + 8) % _ALIGNED)
    return len(header).to_bytes(8, "little") + header + catalogue, list(layout)


@dataclass(frozen=True, eq=False)
class Shard:
    """An open shard.

    Attributes:
        file: the file's name.
        rows: its arrays, views of the memory map; the map lives as long as they do, also when the file is gone.
        video_ids: one name per video, removed ones too.
        durations_s: float64 [V], seconds.
        spans_s: float64 [W, 2], start and length of each window in its video, seconds.
        first_windows: int64 [V + 1]: video v has windows first_windows[v] : first_windows[v + 1].
    """

    file: str
    rows: StoredRows
    video_ids: tuple[str, ...]
    durations_s: Float64
    spans_s: Float64
    first_windows: Int64

    def windows_of(self, video: int) -> range:
        """The windows of a video."""
        return range(int(self.first_windows[video]), int(self.first_windows[video + 1]))

    def spans_of(self, video: int) -> tuple[tuple[float, float], ...]:
        """Start and length of each window of a video, seconds."""
        windows = self.windows_of(video)
        return tuple((start, length) for start, length in self.spans_s[windows.start : windows.stop].tolist())

    def branches_of(self, video: int, proposals: int) -> Iterator[tuple[Float32, Float32]]:
        """Yield both branches of each window of a video, decoded, float32 [P, J] twice."""
        for window in self.windows_of(video):
            part = slice(window * proposals, (window + 1) * proposals)
            yield decoded(self.rows.contrastive[part]), decoded(self.rows.iou[part])

    def entries(self, videos: Iterable[int], proposals: int) -> Iterator[Entry]:
        """Yield some videos as they are stored, to be written again."""
        for video in videos:
            windows = self.windows_of(video)
            part = slice(windows.start * proposals, windows.stop * proposals)
            rows = {name: array[part] for name, array in _by_name(self.rows).items()}
            facts = self.video_ids[video], float(self.durations_s[video]), self.spans_of(video)
            yield Entry(*facts, rows, self.rows.norm)


def damage_of(path: Path, record: ShardRecord) -> str | None:
    """Read a whole shard and say what is wrong with it, in a sentence; None if nothing is.

    Args:
        path: the index.
        record: what the manifest says of the shard.
    """
    file = path / SHARDS / record.file
    try:
        size = file.stat().st_size
        if size != record.num_bytes:
            trouble = f"expected {record.num_bytes} bytes, got {size}"
        elif chunked_sha256(file, size) != record.sha256:
            trouble = "its checksum differs"
        else:
            return None
    except OSError as error:
        trouble = error.strerror or str(error)
    count = record.num_videos - len(record.removed)
    return f"{file}, with {count} {'video' if count == 1 else 'videos'}, is damaged: {trouble}"


def open_shard(path: Path, manifest: Manifest, record: ShardRecord) -> Shard:
    """Map a shard and read its catalogue; the rows' checksum is not checked, which would read all of them.

    Args:
        path: the index.
        manifest: the index's.
        record: what the manifest says of the shard.

    Raises:
        FileNotFoundError: the file is gone, as after `compact` in another process.
        InputError: the shard is damaged.
    """
    file = path / SHARDS / record.file
    where = f"index: {file}"
    try:
        size = file.stat().st_size
        if size != record.num_bytes:
            raise InputError(f"{where} is damaged: expected {record.num_bytes} bytes, got {size}; {_ADVICE}")
        mapped: npt.NDArray[np.uint8] = np.memmap(file, np.uint8, "r")
        if mapped.size != record.num_bytes:
            raise InputError(f"{where} is damaged: expected {record.num_bytes} bytes, got {mapped.size}; {_ADVICE}")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from None
    head = mapped[: record.head_bytes].tobytes()
    if hashlib.sha256(head).hexdigest() != record.head_sha256:
        raise InputError(f"{where} is damaged: the checksum of its catalogue differs; {_ADVICE}")
    try:
        return _opened(manifest, record, np.asarray(mapped), head)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{where} is not the shard that the manifest names ({error}); {_ADVICE}") from None


def _opened(manifest: Manifest, record: ShardRecord, mapped: npt.NDArray[np.uint8], head: bytes) -> Shard:
    """The shard behind a map whose head has the manifest's checksum; both may come from somebody else.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: head and manifest do not fit together.
    """
    begin = 8 + int.from_bytes(head[:8], "little")
    tensors = parse_json(head[8:begin].decode(), "header")
    catalogue = parse_json(head[begin:].decode(), "catalogue")
    num_rows = record.num_windows * manifest.num_proposals
    arrays: dict[str, Any] = {}
    for name, kind in _LAYOUTS[manifest.storage].items():
        first, last = tensors[name]["data_offsets"]
        arrays[name] = mapped[begin + first : begin + last].view(kind)
        arrays[name] = arrays[name].reshape(num_rows, _width(name, manifest.preset.joint_size))
    spans = np.array([span for windows in catalogue["windows"] for span in windows], np.float64).reshape(-1, 2)
    counts = [len(windows) for windows in catalogue["windows"]]
    video_ids = tuple(str(video_id) for video_id in catalogue["video_ids"])
    durations_s, norm = np.array(catalogue["durations_s"], np.float64), float(catalogue["norm"])
    sizes = len(video_ids), len(durations_s), len(counts), len(spans)
    if sizes != (*[record.num_videos] * 3, record.num_windows) or min(counts) < 1 or len(set(video_ids)) < sizes[0]:
        raise ValueError("other videos or windows than the manifest names")
    if not (np.isfinite(norm) and (durations_s > 0).all() and np.isfinite(spans).all()):
        raise ValueError("a length that is no number")
    return Shard(
        file=record.file,
        rows=_stored_rows(arrays, norm),
        video_ids=video_ids,
        durations_s=durations_s,
        spans_s=spans,
        first_windows=np.cumsum([0, *counts], dtype=np.int64),
    )
