"""What a backend is: the model's three seams on one device, in one precision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mmn_fast.checkpoint import LoadedModel
from mmn_fast.types import FloatArray

Branches = tuple[FloatArray, FloatArray]
"""A contrastive and an iou array of equal shape."""


class Backend(ABC):
    """Runs a model. Results do not depend on what else is in the call.

    Args:
        model: the model's values.
        device: "cpu", "cuda" or "cuda:N"; a device that `unavailable_reason` accepts.
        precision: a precision that `unavailable_reason` accepts, or "auto" for the backend's default.
        threads: CPU threads, >= 1; None leaves the process's setting alone.
    """

    name: ClassVar[str]
    threads: int | None

    @classmethod
    @abstractmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        """Why this backend cannot run so here, as a sentence; None if it can.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N".
            precision: "auto" or one of `engine.PRECISIONS`.
        """

    @abstractmethod
    def __init__(self, model: LoadedModel, device: str, precision: str, threads: int | None) -> None: ...

    @abstractmethod
    def encode_video(self, pre_clips: FloatArray) -> Branches:
        """Embed every proposal of some videos.

        Args:
            pre_clips: float32 [B, T, D], B >= 0.

        Returns:
            float32 [B, P, J] twice, unit norm over J.
        """

    @abstractmethod
    def encode_text(self, token_ids: Sequence[npt.NDArray[np.int64]]) -> Branches:
        """Embed sentences.

        Args:
            token_ids: int64 [L_s] per sentence, not padded.

        Returns:
            float32 [S, J] twice, unit norm over J.
        """

    @abstractmethod
    def score(self, video: Branches, text: Branches) -> Branches:
        """Match sentences with the proposals of one video.

        Args:
            video: float32 [P, J] twice, unit norm.
            text: float32 [S, J] twice, unit norm.

        Returns:
            contrastive [S, P], the cosine, and iou [S, P], sigmoid(10 cosine); float32.
        """

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What was chosen: at least device and precision."""
