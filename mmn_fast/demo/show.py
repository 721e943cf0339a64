"""The demonstration: draws a video that no training has seen, grounds its sentences, shows both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.demo.scenes import FPS
from mmn_fast.demo.shapes import ShapesVideo, extractor, make_video, save_video
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.types import Query, Video
from mmn_fast.viz import GroundedQuery, Page, film_of, grounded, report

FRAME_SIDE = 192  # pixels of the frames on the page; features come from frames of `rendering.FRAME_SIZE` pixels
_DRAWN_SIDE, _SCALE = 128, 2  # a file's frames are drawn small and enlarged: drawing takes longer than coding


@dataclass(frozen=True, eq=False)
class Demonstration:
    """A video of the test split with its sentences grounded.

    Attributes:
        video: the video, its frames and the true facts.
        queries: sentences with predicted moments, true spans and score maps, in order of true start.
        file: the video file that the features came from; None if they came from the frames in memory.
    """

    video: ShapesVideo
    queries: list[GroundedQuery]
    file: Path | None = None

    def table(self) -> str:
        """Query, predicted span, true span, IoU and score, one line per sentence, in seconds."""
        width = max(len(query.sentence) for query in self.queries)
        lines = [f"{'query':{width}}   {'predicted':^15}   {'true':^15}    IoU   score"]
        for query in self.queries:
            best, (start_s, end_s) = query.moments[0], query.truth_s[0]
            lines.append(
                f"{query.sentence:{width}}   {best.start_s:5.2f} - {best.end_s:5.2f} s"
                f"   {start_s:5.2f} - {end_s:5.2f} s   {query.iou:4.2f}   {best.score:5.3f}"
            )
        return "\n".join(lines)

    def to_list(self) -> list[dict[str, Any]]:
        """Per sentence the predicted and the true spans, as plain JSON types."""
        return [
            {
                "query": query.sentence,
                "moments": [moment.to_dict() for moment in query.moments],
                "true_s": [list(window) for window in query.truth_s],
                "iou": query.iou,
            }
            for query in self.queries
        ]

    def page(self) -> Page:
        """One self-contained HTML page: the video, a timeline and a moment map per sentence."""
        shown: dict[str, Any] = {"title": "mmn_fast: sentences grounded in a video of shapes"}
        shown["video_id"] = self.video.video_id
        if self.file is None:
            return report(self.queries, self.video.duration_s, frames=self.video.frames(FRAME_SIDE), fps=FPS, **shown)
        return report(self.queries, self.video.duration_s, film=film_of(self.file, self.video.duration_s), **shown)


def demonstrate(engine: Engine, seed: int, top_k: int = 5, file: Path | None = None) -> Demonstration:
    """Draw the test video of a seed and ground its sentences.

    Args:
        engine: the model; the preset's input size must be the width of `PixelFeatures`.
        seed: number of the video, >= 0.
        top_k: moments per sentence.
        file: write the video to this file (.mp4; an existing file is replaced) and extract its features from there, as
            the model's contract says; None takes the features of the frames in memory.

    Raises:
        InputError: the seed is negative, the model is not made for this world, or there is no PyAV for `file`.
        WriteError: the file cannot be written.
    """
    if seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {seed}")
    drawn = make_video("test", seed, 0)
    sentences = [sentence.text for sentence in drawn.sentences]
    if file is None:
        video = Video(drawn.features, drawn.duration_s, drawn.video_id)
    else:
        save_video(drawn.frames(_DRAWN_SIDE), file, _SCALE)
        made = extractor() if engine.contract is None else engine.extractor()
        video = Video.open(file, made, video_id=drawn.video_id)
    batch = [Query(video, sentences)]
    queries = grounded(
        sentences,
        engine.ground(batch, top_k=top_k)[0],
        truth_s=[(sentence.fact.start_s, sentence.fact.end_s) for sentence in drawn.sentences],
        maps=engine.score_maps(batch)[0],
        num_clips=engine.preset.num_clips,
    )
    return Demonstration(drawn, queries, file)
