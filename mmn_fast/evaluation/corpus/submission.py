"""TVR's submission file: the predictions of all tasks as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmn_fast.index import Match, RankedVideo
from mmn_fast.storage.files import refuse_existing, whole_file


@dataclass(frozen=True, eq=False)
class Answer:
    """The predictions of one sentence.

    Attributes:
        query_id: the sentence's name.
        sentence: the sentence.
        moments: moments of all videos, best first.
        in_video: moments of the right video, best first.
        videos: videos, best first.
    """

    query_id: str | int
    sentence: str
    moments: Sequence[Match]
    in_video: Sequence[Match]
    videos: Sequence[RankedVideo]


def write_submission(path: str | Path, answers: Sequence[Answer], video_ids: Sequence[str]) -> None:
    """Write a file that TVR's evaluation reads.

    The layout is `{"video2idx": {video: number}, "VCMR": [{"desc_id", "desc", "predictions": [[number, start, end,
    score], ...]}, ...], "SVMR": [...], "VR": [...]}`; start and end of a video are 0.

    Args:
        path: new file.
        answers: one per sentence.
        video_ids: all videos of the library.

    Raises:
        InputError: the file exists or cannot be written.
    """
    number_of = {video_id: number for number, video_id in enumerate(video_ids)}

    def moments(found: Sequence[Match]) -> list[list[float]]:
        return [[number_of[match.video_id], match.start_s, match.end_s, match.score] for match in found]

    def videos(found: Sequence[RankedVideo]) -> list[list[float]]:
        return [[number_of[video.video_id], 0, 0, video.score] for video in found]

    with whole_file(refuse_existing(path, "predictions"), "predictions") as file:
        file.write(b'{"video2idx": ' + json.dumps(number_of).encode())
        for task in ("VCMR", "SVMR", "VR"):
            file.write(f', "{task}": ['.encode())
            for number, answer in enumerate(answers):
                rows = {"VCMR": answer.moments, "SVMR": answer.in_video}
                predictions = moments(rows[task]) if task in rows else videos(answer.videos)
                line = {"desc_id": answer.query_id, "desc": answer.sentence, "predictions": predictions}
                file.write((b",\n" if number else b"") + json.dumps(line).encode())
            file.write(b"]")
        file.write(b"}\n")
