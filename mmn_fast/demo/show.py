"""The demonstration: draws a video that no training has seen, grounds its sentences, shows both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmn_fast.demo.scenes import FPS
from mmn_fast.demo.shapes import ShapesVideo, make_video
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.types import Query, Video
from mmn_fast.viz import GroundedQuery, Page, grounded, report

FRAME_SIDE = 192  # pixels of the frames on the page; features come from frames of `rendering.FRAME_SIZE` pixels


@dataclass(frozen=True, eq=False)
class Demonstration:
    """A video of the test split with its sentences grounded.

    Attributes:
        video: the video, its frames and the true facts.
        queries: sentences with predicted moments, true spans and score maps, in order of true start.
    """

    video: ShapesVideo
    queries: list[GroundedQuery]

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
        return report(
            self.queries,
            self.video.duration_s,
            title="mmn_fast: sentences grounded in a video of shapes",
            video_id=self.video.video_id,
            frames=self.video.frames(FRAME_SIDE),
            fps=FPS,
        )


def demonstrate(engine: Engine, seed: int, top_k: int = 5) -> Demonstration:
    """Draw the test video of a seed and ground its sentences.

    Args:
        engine: the model; the preset's input size must be the width of `PixelFeatures`.
        seed: number of the video, >= 0.
        top_k: moments per sentence.

    Raises:
        InputError: the seed is negative, or the model is not made for this world.
    """
    if seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {seed}")
    drawn = make_video("test", seed, 0)
    sentences = [sentence.text for sentence in drawn.sentences]
    batch = [Query(Video(drawn.features, drawn.duration_s, drawn.video_id), sentences)]
    queries = grounded(
        sentences,
        engine.ground(batch, top_k=top_k)[0],
        truth_s=[(sentence.fact.start_s, sentence.fact.end_s) for sentence in drawn.sentences],
        maps=engine.score_maps(batch)[0],
        num_clips=engine.preset.num_clips,
    )
    return Demonstration(drawn, queries)
