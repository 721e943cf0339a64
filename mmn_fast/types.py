"""Inputs and outputs of the engine: videos, queries, moments and score maps.

Arrays are NumPy, so results of every backend can be pickled, saved and moved between processes.
Symbols: B videos, S sentences, P proposals, J joint width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mmn_fast.arrays import Float32, Int32, described
from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.features.contract import FeatureContract
    from mmn_fast.features.extractors.base import Extractor

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A video as its clip features.

    Attributes:
        features: float [n_src, D], NumPy or torch, any float dtype, any strides, n_src >= 1: the extractor's rows in
            temporal order, not normalised (the engine normalises them).
        duration_s: length of the video in seconds, > 0.
        video_id: name used in messages and predictions.
        contract: how the features are made, if that is known; an engine refuses features of another contract than its
            model's. None is never refused.
    """

    features: Any
    duration_s: float
    video_id: str = ""
    contract: FeatureContract | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        extractor: str | Extractor,
        *,
        video_id: str | None = None,
        progress: Callable[[float], object] | None = None,
        **options: Any,
    ) -> Video:
        """Extract the features of a video file.

        Args:
            path: a local video file.
            extractor: an extractor, such as `engine.extractor()`; or its name, as `features.extractors.make_extractor`
                takes it.
            video_id: name of the video; None takes the file's name without its suffix.
            progress: called now and then with the seconds of video that are done.
            options: with an extractor's name, other arguments of `make_extractor`.

        Returns:
            The video, its length as found by decoding. If a part of the file is damaged, a warning says how much was
            lost.

        Raises:
            InputError: the file is no readable video, or the extractor cannot be made.
        """
        from mmn_fast.features.extractors.base import Extractor
        from mmn_fast.features.extractors.registry import make_extractor

        if isinstance(extractor, Extractor):
            if options:
                raise InputError(f"extractor: expected its name with {', '.join(options)}, got one that is made")
        else:
            extractor = make_extractor(extractor, **options)
        found = extractor.read(path, progress=progress)
        if found.lost is not None:
            logger.warning("%s: %s", path, found.lost)
        name = Path(path).stem if video_id is None else video_id
        return cls(found.rows, found.duration_s, name, extractor.contract)

    def __repr__(self) -> str:
        return f"Video({described(self.features)}, duration_s={self.duration_s!r}, video_id={self.video_id!r})"


@dataclass(frozen=True, eq=False)
class Query:
    """One video and the sentences to ground in it.

    Attributes:
        video: the video.
        sentences: any number of sentences, each a str.
    """

    video: Video
    sentences: Sequence[str]


@dataclass(frozen=True, eq=False, repr=False)
class ScoreMaps:
    """Packed scores of every proposal of one video for each sentence. Also a mapping, for `np.savez(path, **maps)`.

    Attributes:
        contrastive: float32 [S, P], cosine of the contrastive branch, -1 to 1.
        iou: float32 [S, P], sigmoid(10 cosine) of the iou branch, 0 to 1.
        fused: float32 [S, P], the score that ranks moments.
        cells: int32 [P, 2], the proposals (i, j) in row-major order: clips i to j, both included.
    """

    contrastive: Float32
    iou: Float32
    fused: Float32
    cells: Int32

    def __repr__(self) -> str:
        return f"ScoreMaps({', '.join(f'{name}={described(self[name])}' for name in self.keys())})"

    def keys(self) -> list[str]:
        """The names of the arrays."""
        return [f.name for f in fields(self)]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.keys():
            raise KeyError(name)
        array: npt.NDArray[Any] = getattr(self, name)
        return array
