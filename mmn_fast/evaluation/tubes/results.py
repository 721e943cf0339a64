"""The challenge's results.json: per video the answer's first and last frame and its boxes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.evaluation.tubes.annotations import TubeSample
from mmn_fast.storage.files import write_whole
from mmn_fast.tubes import TubeMoment


@dataclass(frozen=True, eq=False)
class TubeAnswer:
    """What an engine answers to one sentence.

    Attributes:
        sample: the video, its sentence and its true tube, if known.
        moment: the rows of a tube that were chosen.
        viou: their vIoU with the true tube, None where that is not known.
        tiou: their tIoU with it.
    """

    sample: TubeSample
    moment: TubeMoment
    viou: float | None = None
    tiou: float | None = None


def results_of(answers: Iterable[TubeAnswer]) -> dict[str, Any]:
    """Answers in the layout of results.json.

    Returns:
        `{"<file>.mp4": {"st_frame": int, "ed_frame": int, "bbox": {"<frame>": [x1, y1, x2, y2], ...}}, ...}`; the last
        frame is included, boxes are corners and not rounded.
    """
    results = {}
    for answer in answers:
        moment = answer.moment
        frames = range(moment.start_frame, moment.end_frame + 1)
        boxes = {str(frame): box for frame, box in zip(frames, moment.boxes.tolist(), strict=True)}
        ends = {"st_frame": moment.start_frame, "ed_frame": moment.end_frame}
        results[answer.sample.file_name] = {**ends, "bbox": boxes}
    return results


def write_results(path: str | Path, answers: Iterable[TubeAnswer], argument: str = "path") -> Path:
    """Write results.json; it appears whole or not at all.

    Raises:
        InputError: the file exists, or its folder cannot be written to.
        WriteError: the file cannot be written.
    """
    content = json.dumps(results_of(answers), ensure_ascii=False) + "\n"
    return write_whole(path, content.encode(), overwrite=False, argument=argument)
