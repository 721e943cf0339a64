"""Scores a results.json of HC-STVG, ours or another program's, without a model."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.arrays import Float64, Int64
from mmn_fast.checks import Integer, Number, fail, shown
from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import first_few
from mmn_fast.evaluation.loop import notes_of
from mmn_fast.evaluation.notes import Note, refuse, say
from mmn_fast.evaluation.tubes.annotations import TubeSample
from mmn_fast.evaluation.tubes.figures import TubeFigures
from mmn_fast.evaluation.tubes.run import TubeReport
from mmn_fast.features.published_tubes import moved_away
from mmn_fast.features.tubes import video_id_of
from mmn_fast.storage.documents import read_json

logger = logging.getLogger(__name__)

_MAX_FILE = 2**30  # bytes; a box per frame, up to a thousand frames per video
_FRAME = Integer(0)
_COORDINATE = Number(-1e9, 1e9)


def read_results(path: str | Path) -> dict[str, tuple[Int64, Float64]]:
    """Read answers in the layout that `results.results_of` describes.

    Args:
        path: the JSON file.

    Returns:
        Per video id (its key without the extension) the answer's frames, int64 [n], and boxes, float64 [n, 4] (x1, y1,
        x2, y2). Boxes with x2 < x1 or y2 < y1 overlap nothing, as in the official evaluation: they lie far outside the
        picture here.

    Raises:
        InputError: the file cannot be used; the message names the video and the value.
    """
    where = f"predictions: {path}"
    content = read_json(Path(path), where, _MAX_FILE)
    if not isinstance(content, dict) or not content:
        raise fail(where, "a JSON object with an answer per video (results.json)", content)
    found: dict[str, tuple[Int64, Float64]] = {}
    for name, entry in content.items():
        video_id, named = video_id_of(name), f"{where}: video {shown(name)}"
        if video_id in found:
            raise InputError(f"{named}: expected one answer per video, got another one under this name")
        found[video_id] = _answer(entry, named)
    return found


def score_results(
    predictions: str | Path,
    samples: Sequence[TubeSample],
    *,
    thresholds: Sequence[float] = (0.3, 0.5),
    protocol: str = "mmn",
    preset: str | None = None,
    skip_missing: bool = False,
    strict: bool = False,
) -> TubeReport:
    """Score a results.json; a file that `evaluate_tubes` led to gives the figures of `evaluate_tubes`.

    Args:
        predictions: the file, see `read_results`.
        samples: the data set with its true tubes, see `read_tube_annotations`.
        thresholds: the m of vIoU@m.
        protocol: name in `figures.PROTOCOLS`.
        preset: name of the preset in the report; None takes the file's name.
        skip_missing: leave out videos without an answer, with a warning that counts them.
        strict: refuse to leave out videos or answers.

    Raises:
        InputError: the file cannot be used, a video has no answer (unless `skip_missing`), or `strict` refuses
            something.
    """
    started = time.perf_counter()
    figures = TubeFigures(thresholds, protocol)
    found = read_results(predictions)
    num_answers, missing, counted = len(found), [], 0
    for sample in samples:
        answer = found.pop(sample.video_id, None)
        if answer is None:
            missing.append(sample.video_id)
        elif sample.truth is None:
            raise InputError(f"samples: video {sample.video_id!r} has no true tube")
        else:
            figures.add(answer, sample.truth, f"predictions: {predictions}: video {sample.video_id!r}")
            counted += 1
    if missing and not (skip_missing and counted):
        hint = "" if skip_missing else " (skip_missing leaves them out)"
        raise InputError(
            f"predictions: {predictions} lacks {len(missing)} of {len(samples)} videos: {first_few(missing)}{hint}"
        )
    notes = []
    if missing:
        few = first_few(missing)
        notes.append(Note("skipped", "videos", len(missing), len(samples), "they have no answer", few))
    if found:
        few = first_few(list(found))
        notes.append(Note("left_out", "answers", len(found), num_answers, "the annotations lack their videos", few))
    if strict:
        refuse(notes)
    say(logger, predictions, tuple(notes))
    seconds = time.perf_counter() - started
    name = Path(predictions).name if preset is None else preset
    return TubeReport(name, protocol, figures.metrics(), counted, seconds, (*notes_of(samples), *notes))


def _answer(entry: Any, where: str) -> tuple[Int64, Float64]:
    if not isinstance(entry, Mapping):
        raise fail(where, "an object with st_frame, ed_frame and bbox", entry)
    missing = [key for key in ("st_frame", "ed_frame", "bbox") if key not in entry]
    if missing:
        raise InputError(f"{where}: missing {', '.join(missing)}")
    first, last = (_FRAME(entry[key], f"{where}: {key}") for key in ("st_frame", "ed_frame"))
    boxes = entry["bbox"]
    if not isinstance(boxes, Mapping):
        raise fail(f"{where}: bbox", "an object with a box per frame", boxes)
    if last < first or len(boxes) != last - first + 1:
        raise InputError(
            f"{where}: bbox: expected a box for each of the {max(last - first + 1, 0)} frames from {first} to {last},"
            f" got {len(boxes)}"
        )
    rows = []
    for frame in range(first, last + 1):
        if str(frame) not in boxes:
            raise InputError(f"{where}: bbox: expected a box for frame {frame}, got none")
        box = boxes[str(frame)]
        if not isinstance(box, list) or len(box) != 4:
            raise fail(f"{where}: bbox: frame {frame}", "a box [x1, y1, x2, y2]", box)
        rows.append([_COORDINATE(value, f"{where}: bbox: frame {frame}") for value in box])
    corners, _ = moved_away(np.array(rows, np.float64))
    return np.arange(first, last + 1, dtype=np.int64), corners
