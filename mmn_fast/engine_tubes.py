"""What an engine does with tubes: ground sentences in them, or embed them once and score later."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.backends.base import Backend, Branches
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.checks import shown
from mmn_fast.embeddings import TextEmbeddings, TubeEmbeddings, check_embeddings
from mmn_fast.errors import InputError
from mmn_fast.geometry import ProposalPlan
from mmn_fast.postprocess import fuse_scores, to_tube_moments
from mmn_fast.presets import Preset
from mmn_fast.request import check_top_k, check_tubes, distinct_tubes, make_tube_request
from mmn_fast.tubes import Tube, TubeMoment, TubeQuery


class TubeGrounding:
    """The part of `Engine` for models of tubes (`Preset.of_tubes`). To the model every tube is a video of its own."""

    preset: Preset
    _model: LoadedModel
    _backend: Backend
    _plan: ProposalPlan
    _progress: bool

    def ground_tubes(self, batch: Iterable[TubeQuery], top_k: int = 1) -> list[list[list[TubeMoment]]]:
        """Find the tube, and its rows, that sentences describe.

        Answers go by position: two queries may have one video id. Which video a tube is of cannot be seen from its
        values, so a tube of another video competes like any other.

        Args:
            batch: any number of queries; a tube that occurs several times is encoded once.
            top_k: moments per sentence, >= 1. The first is the official answer. Those after it leave out what overlaps
                a better one in space and time by more than the preset's threshold (vIoU above `Preset.nms_iou`); the
                official code has no such rule.

        Returns:
            `result[v][s]`: moments of sentence s of query v, best first; fewer than top_k where suppression leaves
            fewer, an empty list where the query has no tubes. Of equal scores the first tube's first cell is taken.

        Raises:
            InputError: the model is not of tubes, or a query cannot be used; the message names the query, the tube and
                its video, and what is wrong with it.
        """
        self._require_tubes("ground_tubes")
        top_k = check_top_k(top_k)
        asked = make_tube_request(batch, self.preset, self._model.tokenizer.encode, self._progress)
        tube_of: list[tuple[int, int]] = []  # query and tube of each of the request's queries
        fused: list[Float32] = []
        for tracks, count in zip(asked.tracks, asked.sentences, strict=True):
            tube_of += [(len(fused), tube) for tube in range(len(tracks))]
            fused.append(np.empty((len(tracks), count, self._plan.num_proposals), np.float32))
        for number, video, text in self._backend.embed(asked.request):
            query, tube = tube_of[number]
            fused[query][tube] = self._fused(video, text)
        return [
            to_tube_moments(scores, tracks, self.preset, top_k)
            for scores, tracks in zip(fused, asked.tracks, strict=True)
        ]

    def encode_tubes(self, tubes: Iterable[Tube], video_id: str = "") -> TubeEmbeddings:
        """Embed every proposal of one video's tubes; once, for any number of sentences later.

        Args:
            tubes: any number of tubes of one video.
            video_id: the video's name.

        Returns:
            Embeddings in the order given, which can be saved.

        Raises:
            InputError: the model is not of tubes, or a tube cannot be used.
        """
        self._require_tubes("encode_tubes")
        tracks, named = check_tubes(tubes, "tubes", video_id)
        distinct, rows = distinct_tubes(named, self.preset)
        shape = (-1, self.preset.num_pre_clips, self.preset.input_size)
        inputs = np.concatenate(distinct) if distinct else np.empty(0, np.float32)
        contrastive, iou = self._backend.encode_video(inputs.reshape(shape))
        if len(distinct) < len(named):
            contrastive, iou = contrastive[rows], iou[rows]
        return TubeEmbeddings(
            contrastive=contrastive,
            iou=iou,
            fingerprint=self._model.fingerprint,
            tracks=tuple(tracks),
            video_ids=(video_id,) * len(tracks),
        )

    def score_tubes(self, tubes: TubeEmbeddings, text: TextEmbeddings, top_k: int = 1) -> list[list[TubeMoment]]:
        """Ground every sentence in the tubes of one video from their embeddings.

        Args:
            tubes: what `encode_tubes` made, here or in another process.
            text: what `Engine.encode_text` made.
            top_k: moments per sentence, as for `ground_tubes`.

        Returns:
            `result[s]`: moments of sentence s, best first.

        Raises:
            InputError: the embeddings are of another model or of several videos, or the model is not of tubes.
        """
        self._require_tubes("score_tubes")
        top_k = check_top_k(top_k)
        check_embeddings(tubes, TubeEmbeddings, "tubes", self._model.fingerprint)
        check_embeddings(text, TextEmbeddings, "text", self._model.fingerprint)
        videos = list(dict.fromkeys(tubes.video_ids))
        if len(videos) > 1:
            raise InputError(f"tubes: expected tubes of one video, got those of {shown(videos)}")
        fused = np.empty((len(tubes), len(text), self._plan.num_proposals), np.float32)
        for scores, contrastive, iou in zip(fused, tubes.contrastive, tubes.iou, strict=True):
            scores[:] = self._fused((contrastive, iou), (text.contrastive, text.iou))
        return to_tube_moments(fused, tubes.tracks, self.preset, top_k)

    def _fused(self, video: Branches, text: Branches) -> Float32:
        """The scores that rank the proposals of one tube, float32 [S, P], all finite."""
        fused = fuse_scores(*self._backend.score(video, text), self.preset)
        if not np.isfinite(fused).all():
            raise InputError(
                f"precision: expected one that holds this model's values, got {self._backend.info()['precision']!r}:"
                " scores of a tube are not finite; bf16 and fp32 hold larger values"
            )
        return fused

    def _require_tubes(self, call: str) -> None:
        if not self.preset.of_tubes:
            raise InputError(
                f"{call}: expected a model of tubes (score_fusion 'product'), got preset {self.preset.name!r}, which"
                " grounds sentences in whole videos: Engine.ground"
            )
