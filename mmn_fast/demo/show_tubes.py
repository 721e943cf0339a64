"""The demonstration with tubes: a video that no training has seen, its tubes, and sentences about one shape each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmn_fast.demo.scenes import FPS
from mmn_fast.demo.shapes import ShapesVideo
from mmn_fast.demo.show import FRAME_SIDE
from mmn_fast.demo.tracks import BOX_SIDE
from mmn_fast.demo.tubes import TubesVideo, make_tubes
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.tubes import TubeQuery
from mmn_fast.types import Query, Video
from mmn_fast.viz import GroundedTubes, Page, ScoreMap, tube_report


@dataclass(frozen=True, eq=False)
class TubesDemonstration:
    """A video of the test split with its sentences grounded in its tubes.

    Attributes:
        made: the video, its tubes and the true tubes.
        queries: sentences with predicted and true tubes and score maps, in order of true start.
    """

    made: TubesVideo
    queries: list[GroundedTubes]

    @property
    def video(self) -> ShapesVideo:
        """The video."""
        return self.made.video

    def table(self) -> str:
        """Query, predicted and true tube and frames, vIoU, tIoU and score, one line per sentence."""
        width = max(len(query.sentence) for query in self.queries)
        lines = [f"{'query':{width}}   tube   {'predicted':^9}   {'true':^9}   vIoU   tIoU   score"]
        for query in self.queries:
            best, ious, truth = query.moments[0], query.ious, query.truth
            assert ious is not None
            assert truth is not None
            lines.append(
                f"{query.sentence:{width}}   {best.tube:4}   {best.start_frame:3} - {best.end_frame:3}"
                f"   {truth[0][0]:3} - {truth[0][-1]:3}   {ious[0]:4.2f}   {ious[1]:4.2f}   {best.score:5.3f}"
            )
        return "\n".join(lines)

    def to_list(self) -> list[dict[str, Any]]:
        """Per sentence the predicted and the true tube, as plain JSON types."""
        listed = []
        for query in self.queries:
            assert query.truth is not None
            frames, boxes = query.truth
            viou, tiou = query.ious or (0.0, 0.0)
            true = {"start_frame": int(frames[0]), "end_frame": int(frames[-1]), "boxes": boxes.tolist()}
            moments = [moment.to_dict() for moment in query.moments]
            listed.append({"query": query.sentence, "moments": moments, "true": true, "viou": viou, "tiou": tiou})
        return listed

    def page(self) -> Page:
        """One self-contained HTML page: the video with the boxes, a timeline and a moment map per sentence."""
        return tube_report(
            self.queries,
            self.made.tubes,
            self.video.frames(FRAME_SIDE),
            FPS,
            box_size=(BOX_SIDE, BOX_SIDE),
            title="mmn_fast: sentences grounded in tubes of shapes",
            video_id=self.video.video_id,
        )


def demonstrate_tubes(engine: Engine, seed: int, top_k: int = 5) -> TubesDemonstration:
    """Draw the test video of a seed and ground its sentences about one shape in its tubes.

    Args:
        engine: the model; the preset's input size must be the width of `PixelFeatures`.
        seed: number of the video, >= 0.
        top_k: moments per sentence.

    Raises:
        InputError: the seed is negative, or the model is not made for tubes of this world.
    """
    if seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {seed}")
    made = make_tubes("test", seed, 0)
    sentences = [sentence.text for sentence in made.sentences]
    moments = engine.ground_tubes([TubeQuery(made.tubes, sentences, made.video.video_id)], top_k=top_k)[0]
    # To the model every tube is a video of its own; its duration does not change the map.
    streams = [stream for tube in made.tubes for stream in tube.features or ()]  # one of each tube
    maps = engine.score_maps([Query(Video(stream, 1.0), sentences) for stream in streams])
    queries = []
    for row, (sentence, found, truth) in enumerate(zip(sentences, moments, made.truths, strict=True)):
        map_ = maps[found[0].tube]
        score_map = ScoreMap(map_.fused[row], map_.cells, engine.preset.num_clips)
        queries.append(GroundedTubes(sentence, found, truth, score_map))
    return TubesDemonstration(made, queries)
