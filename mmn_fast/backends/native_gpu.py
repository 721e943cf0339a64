"""The native backend on a CUDA device: raw features and word pieces in, moments out, without a wait in between.

A request is padded to static sizes (`buckets`); each size is captured once as a CUDA graph (`runtime.programs`). A
request that fits one size is one graph: text and video run on two streams that join before the scores. A larger request
is split into a graph per piece of text, of videos and of pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmn_fast.arrays import Bool, Float32, Int32, Int64
from mmn_fast.backends.base import Backend, Branches, Option, Selection, Settings
from mmn_fast.buckets import (
    QUERY_BUCKETS,
    VIDEO_BUCKETS,
    bucket_for,
    padded_ids,
    padded_pairs,
    rows_for,
    split,
)
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.errors import InputError
from mmn_fast.features import float32_rows, pre_clip_spans
from mmn_fast.geometry import plan_for
from mmn_fast.kernels import host
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.kernels.gpu import device as gpu_device
from mmn_fast.kernels.gpu.conv.choice import CONVS, layer_choices, make_conv, spectral_values, unavailable_reason
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.precisions import ON_CUDA, refusal, torch_dtype
from mmn_fast.request import Pairs, Request
from mmn_fast.runtime.device_copies import DeviceCopies
from mmn_fast.runtime.graph_cache import MIB
from mmn_fast.runtime.graph_runner import Input
from mmn_fast.runtime.programs import Programs, TextBranch
from mmn_fast.runtime.video_branch import VideoBranch
from mmn_fast.text_encoder import build_text_encoder, fuse_attention


class NativeGpuBackend(Backend):
    """Runs CUDA kernels of this package around the library's matrix products; fp16 by default.

    In fp32 (no TF32) every video and every sentence is encoded at a size of its own, so that its bits do not depend on
    the rest of the call. In fp16 and bf16 the library may choose another algorithm for another batch; results stay
    within the precision's error bound.

    With device "cpu" the constructor runs the same path on the kernels' twins. This is for tests:
    `unavailable_reason` refuses it.
    """

    name = "native"
    only_by_name = "it has not been measured on a GPU yet; backend='native' takes it"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "graphs": Option.flag("whether to capture CUDA graphs", default=True),
        "max_graph_mib": Option.whole_mib("device memory that graphs may hold", default=16384),
        "max_video_mib": Option.whole_mib(
            "device memory that copies of videos scored before may hold; 0 keeps none", default=1024
        ),
        "conv": Option.one_of(
            "the proposal convolution: " + "; ".join(f"{name}, {what}" for name, what in CONVS.items()), CONVS, "auto"
        ),
        "autotune": Option.flag(
            "measure the proposal convolutions in Triton on this device, once, and keep what is fastest"
        ),
    }

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        if lacking := refusal(precision, ON_CUDA, "its precisions on CUDA"):
            return lacking
        if device == "cpu":
            return "device 'cpu': it runs on CUDA devices only"
        return gpu_device.unavailable_reason(device)

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        super().__init__(model, settings)
        conv, autotune = self.options["conv"], self.options["autotune"]
        self.precision = settings.precision_or("fp16")
        dtype, on_cuda = torch_dtype(self.precision), settings.device != "cpu"
        place = torch.device("cuda", gpu_device.device_index(settings.device)) if on_cuda else torch.device("cpu")
        exact = self.precision == "fp32"
        self._video_buckets = (1,) if exact else VIDEO_BUCKETS
        self._sentence_buckets = (1,) if exact else QUERY_BUCKETS
        reason = unavailable_reason(conv, dtype, model.preset.conv_kernel, place)
        if reason is None and autotune and not on_cuda:
            reason = f"autotune: expected a CUDA device to measure on, got {settings.device!r}"
        if reason:
            raise InputError(f"backend_options: {reason}")
        plan, preset = plan_for(model.preset), model.preset
        self._num_proposals, self._max_tokens = plan.num_proposals, model.text.max_tokens
        widths = [preset.hidden_size] + [preset.conv_hidden_size] * preset.conv_layers
        choices = layer_choices(conv, plan, widths, dtype, place, self._video_buckets)

        def video() -> VideoBranch:
            layers = ConvSettings(*folded_layers(model.state, model.preset.conv_layers), plan, dtype, place)
            made = make_conv(conv, layers, self._video_buckets, autotune)
            return VideoBranch(model.preset, model.state, dtype, place, made)

        def text() -> TextBranch:
            encoder = build_text_encoder(model.text, model.preset.joint_size, model.state)
            return fuse_attention(encoder).to(place, dtype)

        self._programs = Programs(
            model.preset,
            model.text,
            video,
            text,
            sum(array.size for array in model.state.values()) + spectral_values(choices, widths),
            dtype,
            place,
            self.options["graphs"] and on_cuda,
            self.options["max_graph_mib"] * MIB,
        )
        self._runner = self._programs.runner
        self._copies = DeviceCopies(self._runner.upload, self.options["max_video_mib"] * MIB)
        self._runner.on_release.append(self._copies.clear)

    def run(self, name: str, inputs: Sequence[Tensor], top_k: int = 0) -> Any:
        """Run one program on inputs of static sizes, without waiting; for benchmarks (`Programs.run`).

        Raises:
            MemoryError: the device has too little memory.
        """
        with self._runner.running():
            return self._programs.run(name, inputs, top_k)

    def encode_video(self, pre_clips: Float32) -> Branches:
        shape = (len(pre_clips), self._num_proposals, self.preset.joint_size)
        if not len(pre_clips):
            return np.empty(shape, np.float32), np.empty(shape, np.float32)
        with self._runner.running():
            blocks = []
            for first, count, bucket in split(len(pre_clips), self._video_buckets):
                padded = np.zeros((bucket, *pre_clips.shape[1:]), np.float32)
                padded[:count] = pre_clips[first : first + count]
                pre = self._runner.upload(padded).to(self._programs.dtype)
                branches = self._programs.run("video", [pre])
                blocks.append([branch[:count].float().cpu().numpy() for branch in branches])
        contrastive, iou = (np.concatenate(branch) for branch in zip(*blocks, strict=True))
        for branch in (contrastive, iou):
            branch.setflags(write=False)  # `top_moments` keeps device copies of read-only arrays only
        return contrastive, iou

    def encode_text(self, token_ids: Sequence[Int64]) -> Branches:
        if not token_ids:
            return tuple(np.empty((0, self.preset.joint_size), np.float32) for _ in range(2))  # type: ignore[return-value]
        with self._runner.running():
            contrastive, iou = (branch.float().cpu().numpy() for branch in self._embed_sentences(token_ids))
        return contrastive, iou

    def score(self, video: Branches, text: Branches) -> Branches:
        with self._runner.running():
            vc, vi, tc, ti = (self._runner.upload(array).to(self._programs.dtype) for array in (*video, *text))
            sentences = torch.arange(len(tc), dtype=torch.int32, device=tc.device)
            scores = self._programs.pair_scores((vc[None], vi[None]), (tc, ti), torch.zeros_like(sentences), sentences)
            contrastive, iou, fused = (score.cpu().numpy() for score in scores)
        self._require_finite(np.isfinite(fused).all(1))
        return contrastive, iou

    def top_moments(self, video: Branches, text: Branches, moments: Float32, top_k: int) -> Selection:
        if not len(text[0]):
            return np.empty((0, top_k), np.int32), np.empty((0, top_k), np.float32)
        with self._runner.running():
            pieces = split(len(text[0]), QUERY_BUCKETS)
            # The sentences are copied to the device once: by the single graph launch, or before several launches.
            take = self._runner.pinned if len(pieces) == 1 else self._runner.upload
            copies = [self._copies.take(branch) for branch in video]
            fixed = [take(branch) if copy is None else copy for branch, copy in zip(video, copies, strict=True)]
            fixed.append(take(moments))
            found = []
            for first, count, bucket in pieces:
                piece = [Input(self._runner.pinned(branch[first : first + count]), bucket) for branch in text]
                selection = self._programs.run("moments", [*fixed[:2], *piece, fixed[2]], top_k)
                found.append([tensor[:count] for tensor in selection])
            return self._selected(found)

    def video_input(self, features: Any, name: str) -> Float32:
        return float32_rows(features, self.preset, name)

    def ground(self, request: Request, top_k: int) -> Selection:
        pairs = request.pairs
        if not len(pairs.videos):
            return np.empty((0, top_k), np.int32), np.empty((0, top_k), np.float32)
        with self._runner.running():
            video_bucket = bucket_for(len(request.videos), self._video_buckets)
            sentence_bucket = bucket_for(len(request.token_ids), self._sentence_buckets)
            if video_bucket and sentence_bucket and len(pairs.videos) <= QUERY_BUCKETS[-1]:
                inputs = [
                    *self._rows(request.videos, video_bucket),
                    *self._ids(request.token_ids, sentence_bucket),
                    *self._pairs(pairs.videos, pairs.sentences, pairs.durations),
                ]
                selection = self._programs.run("ground", inputs, top_k)
                return self._selected([[tensor[: len(pairs.videos)] for tensor in selection]])
            return self._ground_in_pieces(request, top_k)

    def warmup(
        self, videos: Sequence[int], sentences: Sequence[int], tokens: Sequence[int], rows: Sequence[int], top_k: int
    ) -> None:
        for count, spoken, length, clips in itertools.product(videos, sentences, tokens, rows):
            numbers = np.arange(spoken, dtype=np.int32)
            pairs = Pairs(np.zeros_like(numbers), numbers, np.ones(spoken, np.float32))
            features = np.ones((clips, self.preset.input_size), np.float32)
            ids = np.ones(min(length, self._max_tokens), np.int64)
            self.ground(Request([features] * count, [ids] * spoken, pairs, [slice(spoken)]), top_k)

    def info(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "threads": host.num_threads(self.threads),
            **self._programs.video.conv.info(),
            **self._runner.info(),
            **self._copies.info(),
        }

    def _ground_in_pieces(self, request: Request, top_k: int) -> Selection:
        pairs, text = request.pairs, self._embed_sentences(request.token_ids)
        found, rows = [], []
        for first, count, video_bucket in split(len(request.videos), VIDEO_BUCKETS):
            video = self._embed_videos(request.videos[first : first + count])
            mine = np.flatnonzero((pairs.videos >= first) & (pairs.videos < first + count))
            for start, held, _ in split(len(mine), QUERY_BUCKETS):
                chosen = mine[start : start + held]
                spoken, sentences = np.unique(pairs.sentences[chosen], return_inverse=True)
                place = self._runner.upload(spoken)
                inputs = [
                    *(Input(branch, video_bucket) for branch in video),
                    *(Input(branch[place], bucket_for(len(spoken), QUERY_BUCKETS)) for branch in text),
                    *self._pairs(pairs.videos[chosen] - first, sentences.astype(np.int32), pairs.durations[chosen]),
                ]
                selection = self._programs.run("score", inputs, top_k)
                found.append([tensor[:held] for tensor in selection])
                rows.append(chosen)
        return self._selected(found, np.argsort(np.concatenate(rows)))

    def _embed_videos(self, features: Sequence[Float32]) -> list[Tensor]:
        """Embed videos: dtype [B, P, J] twice."""
        blocks = []
        for first, count, bucket in split(len(features), self._video_buckets):
            branches = self._programs.run("features", self._rows(features[first : first + count], bucket))
            blocks.append([branch[:count] for branch in branches])
        return [torch.cat(branch) for branch in zip(*blocks, strict=True)]

    def _embed_sentences(self, token_ids: Sequence[Int64]) -> list[Tensor]:
        """Embed sentences, in batches of similar length: dtype [S, J] twice."""
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        blocks = []
        for first, count, bucket in split(len(order), self._sentence_buckets):
            sentences = [token_ids[row] for row in order[first : first + count]]
            branches = self._programs.run("text", self._ids(sentences, bucket))
            blocks.append([branch[:count] for branch in branches])
        back = self._runner.upload(np.argsort(order))
        return [torch.cat(branch)[back] for branch in zip(*blocks, strict=True)]

    def _rows(self, features: Sequence[Float32], bucket: int) -> list[Input]:
        """Rows of all videos, and starts and ends of their pre-clips; filler videos repeat the first one."""
        preset = self.preset
        spans = [pre_clip_spans(len(rows), preset.num_pre_clips, preset.clamp_pre_clips) for rows in features]
        offsets = np.cumsum([0, *(len(rows) for rows in features)])
        order = [*range(len(features)), *[0] * (bucket - len(features))]
        starts, ends = (
            np.concatenate([spans[number][side] + offsets[number] for number in order]).astype(np.int32)
            for side in range(2)
        )
        rows = self._runner.pinned(features[0] if len(features) == 1 else np.concatenate(list(features)))
        return [Input(rows, rows_for(len(rows))), *(Input(self._runner.pinned(side)) for side in (starts, ends))]

    def _ids(self, token_ids: Sequence[Int64], bucket: int) -> list[Input]:
        return [Input(self._runner.pinned(array)) for array in padded_ids(token_ids, bucket, self._max_tokens)]

    def _pairs(self, videos: Int32, sentences: Int32, durations: Float32) -> list[Input]:
        return [Input(self._runner.pinned(array)) for array in padded_pairs(videos, sentences, durations)]

    def _selected(self, found: Sequence[Sequence[Tensor]], order: Int64 | slice = slice(None)) -> Selection:
        """Join the selections of all pieces on the host, in this order; this is a call's first wait."""
        parts = zip(*found, strict=True)
        chosen, scores, finite = (np.concatenate([tensor.cpu().numpy() for tensor in part])[order] for part in parts)
        self._require_finite(finite)
        return chosen, scores

    def _require_finite(self, finite: Bool) -> None:
        """Refuse scores that are not finite: suppression skips NaN, so moments would be missing without an error."""
        if not finite.all():
            raise InputError(
                f"precision: expected one that holds this model's values, got {self.precision!r}:"
                f" {int((~finite).sum())} of {len(finite)} sentences get scores that are not finite; bf16 and fp32 hold"
                " larger values"
            )
