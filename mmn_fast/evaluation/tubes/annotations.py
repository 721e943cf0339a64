"""Annotations of HC-STVG, v1 and v2, and its test queries, read into one form.

    {"<file>.mp4": {"st_frame": 12, "ed_frame": 14, "bbox": [[x, y, w, h], ...], "English": "..."}, ...}
    {"<file>.mp4": "sentence", ...}

A box per frame, from st_frame to ed_frame, both included. v1 calls the sentence `caption` and has no ed_frame. Other
keys (img_num, width, st_time, ...) are not looked at. Some boxes have a negative width or height; they overlap nothing
in the official evaluation, and here (`features.published_tubes.moved_away`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float64, Int64
from mmn_fast.checks import Integer, Number, Text, fail, shown
from mmn_fast.errors import InputError
from mmn_fast.evaluation.notes import Note, Tally, refuse, say
from mmn_fast.features.published_tubes import moved_away
from mmn_fast.features.tubes import video_id_of
from mmn_fast.storage.documents import read_json

logger = logging.getLogger(__name__)

INVERTED = "their width or height is negative; they overlap nothing, as in the official evaluation"
_MAX_FILE = 2**30  # bytes; the training annotations of v2 have some hundred MB
_NAME = Text(most=255)
_SENTENCE = Text(most=100_000)
_FRAME = Integer(0)
_COORDINATE = Number(-1e9, 1e9)
_SENTENCE_KEYS = ("English", "caption")


@dataclass(frozen=True, eq=False)
class TubeSample:
    """One video, its sentence and the tube that it describes.

    Attributes:
        file_name: the video's key in the file, with its extension: its key in results.json.
        video_id: the key without the extension, which names the video's tubes.
        sentence: the sentence.
        truth: frames int64 [m] and boxes float64 [m, 4] (x1, y1, x2, y2) of the true tube; None where it is not known.
    """

    file_name: str
    video_id: str
    sentence: str
    truth: tuple[Int64, Float64] | None = None


class TubeAnnotations(list[TubeSample]):
    """The samples of an annotation file.

    Attributes:
        notes: which boxes were changed.
    """

    notes: tuple[Note, ...] = ()


def read_tube_annotations(path: str | Path, truth: bool | None = True, strict: bool = False) -> TubeAnnotations:
    """Read annotations of HC-STVG, or its test queries.

    Args:
        path: the JSON file.
        truth: True demands boxes. False reads sentences alone: an entry may be a text, and boxes are not looked at.
            None reads boxes where an entry is no text.
        strict: refuse boxes of negative width or height.

    Returns:
        One sample per video, in the file's order; the list's `notes` count boxes of negative width or height.

    Raises:
        InputError: the file cannot be used; the message names it, the video and the value.
    """
    where = f"annotations: {path}"
    content = read_json(path, where, _MAX_FILE)
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object of videos, got {type(content).__name__}")
    if not content:
        raise InputError(f"{where}: expected at least one video, got none")
    samples: dict[str, TubeSample] = {}
    tally, total = Tally(), 0
    for file_name, entry in content.items():
        named = f"{where}: video {shown(file_name)}"
        _NAME(file_name, f"{named}: name")
        sample, inverted = _sample(file_name, entry, truth, named)
        total += 0 if sample.truth is None else len(sample.truth[0])
        for _ in range(inverted):
            tally.add("clamped", "boxes", INVERTED, f"video {sample.video_id!r}")
        other = samples.setdefault(sample.video_id, sample)
        if other is not sample:
            raise InputError(f"{named}: expected videos of different names, got {other.file_name!r} too")
    found = TubeAnnotations(samples.values())
    found.notes = tally.notes({"boxes": total})
    if strict:
        refuse(found.notes)
    say(logger, path, found.notes)
    return found


def write_tube_annotations(path: Path, samples: Sequence[TubeSample]) -> None:
    """Write annotations in the official layout; samples without truth become test queries."""
    content = {sample.file_name: _entry(sample) for sample in samples}
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _entry(sample: TubeSample) -> Any:
    if sample.truth is None:
        return sample.sentence
    frames, boxes = sample.truth
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    ends = {"st_frame": int(frames[0]), "ed_frame": int(frames[-1])}
    return {**ends, "bbox": sides.tolist(), "English": sample.sentence}


def _sample(file_name: str, entry: Any, truth: bool | None, where: str) -> tuple[TubeSample, int]:
    """An entry's sample, and how many of its boxes have a negative width or height."""
    video_id = video_id_of(file_name)
    if isinstance(entry, str) and truth is not True:
        return TubeSample(file_name, video_id, _sentence(entry, where)), 0
    if not isinstance(entry, Mapping):
        expected = "an object with st_frame, bbox and English" + ("" if truth is True else ", or a sentence")
        hint = " (`mmn-fast predict` takes sentences alone)" if isinstance(entry, str) else ""
        raise InputError(f"{where}: expected {expected}, got {shown(entry)}{hint}")
    held = [key for key in _SENTENCE_KEYS if key in entry]
    missing = [] if held else [" or ".join(_SENTENCE_KEYS)]
    missing += [key for key in ("st_frame", "bbox") if truth is not False and key not in entry]
    if missing:
        has = ", ".join(str(key)[:40] for key in list(entry)[:12]) or "nothing"
        raise InputError(f"{where}: missing {', '.join(missing)}; it has {has}")
    sentence = _sentence(entry[held[0]], f"{where}: {held[0]}")
    if truth is False:
        return TubeSample(file_name, video_id, sentence), 0
    frames, corners = _truth(entry, where)
    boxes, inverted = moved_away(corners)
    return TubeSample(file_name, video_id, sentence, (frames, boxes)), inverted


def _sentence(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise fail(where, "a sentence with words", value)
    return _SENTENCE(value, where)


def _truth(entry: Mapping[str, Any], where: str) -> tuple[Int64, Float64]:
    boxes, first = entry["bbox"], _FRAME(entry["st_frame"], f"{where}: st_frame")
    if not isinstance(boxes, list) or not boxes:
        raise fail(f"{where}: bbox", "a list of at least one box [x, y, w, h]", boxes)
    last = _FRAME(entry.get("ed_frame", first + len(boxes) - 1), f"{where}: ed_frame")
    if last - first + 1 != len(boxes):
        raise InputError(
            f"{where}: bbox: expected a box for each of the {max(last - first + 1, 0)} frames from {first} to {last},"
            f" got {len(boxes)}"
        )
    sides = _sides(boxes, f"{where}: bbox")
    corners = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)
    return np.arange(first, last + 1, dtype=np.int64), corners


def _sides(boxes: list[Any], where: str) -> Float64:
    """Boxes x, y, w, h as float64 [m, 4]. NumPy converts them; where it cannot, each number is looked at."""
    array: npt.NDArray[Any] = np.empty(0)
    if all(type(box) is list and len(box) == 4 and bool not in map(type, box) for box in boxes):
        try:
            array = np.array(boxes)
        except (ValueError, OverflowError):
            array = np.empty(0)
    if array.ndim != 2 or array.dtype.kind not in "iuf" or not (np.abs(array) <= _COORDINATE.high).all():
        for frame, box in enumerate(boxes):
            if not isinstance(box, list) or len(box) != 4:
                raise fail(f"{where}[{frame}]", "a box [x, y, w, h]", box)
            for number, name in zip(box, "xywh", strict=True):
                _COORDINATE(number, f"{where}[{frame}]: {name}")
        raise fail(where, "boxes [x, y, w, h] of numbers", boxes)
    return array.astype(np.float64)
