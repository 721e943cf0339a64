"""The native backend: video branch, text encoder and scores in C++ on the CPU, without PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmn_fast.arrays import Float32, Int32, Int64
from mmn_fast.backends.base import Backend, Branches, Option, Selection, Settings
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.geometry import ProposalPlan, diagonal_rows, plan_for, pool_steps, proposal_diagonals
from mmn_fast.kernels import host
from mmn_fast.kernels.cpu import ops
from mmn_fast.kernels.cpu.autotune import tuned_seconds
from mmn_fast.kernels.cpu.conv import LayerChoice, NativeProposalConv, choose_algorithms, has_bf16
from mmn_fast.kernels.cpu.text import NativeTextEncoder
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.postprocess import match_moments, match_pairs
from mmn_fast.precisions import refusal
from mmn_fast.presets import Preset
from mmn_fast.process import torch_build
from mmn_fast.process.forks import fork_waits
from mmn_fast.weights.state import State

_HEAD_PAD = 32  # csrc/cpu/kernels/rows.h, kRowPad
_PRECISIONS = ("fp32", "bf16")


class NativeBackend(Backend):
    """Runs the C++ kernels; BatchNorm is folded and weights are packed once.

    In fp32, contrastive and fused scores are within 2e-5 of float64, iou scores within 5e-5. With AMX, fp32 multiplies
    operands of two bf16 terms (16 bits) and sums in float32, if the model stays within these bounds; option `exact`
    forbids it. In bf16, the proposal convolution multiplies weights of one bf16 term by inputs of one or two, and the
    text encoder's linear maps multiply bf16; everything else stays float32.

    A video or sentence gives bit-identical embeddings alone, in any batch and with any number of threads.
    """

    name = "native"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "exact": Option.flag("fp32 multiplies float32 alone, never bf16 terms"),
        "max_packed_mib": Option.mib_or_none(
            "limit of the proposal convolution's packed weights; layers fall to slower algorithms"
        ),
        "autotune": Option.flag(
            "measure every layer's algorithms on this host, once, instead of rating them by work counts"
        ),
    }

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        if lacking := refusal(precision, _PRECISIONS):
            return lacking
        if device.startswith("cuda"):
            return f"device {device!r}: it runs on the CPU only"
        if precision == "bf16" and not has_bf16():
            return f"precision 'bf16': the instruction set in use, {host.cpu_isa()}, does not multiply bf16"
        if device == "auto" and torch_build.has_cuda() and host.has_cuda_device():
            return "device 'auto': there is a CUDA device, which PyTorch can use, and this backend runs on the CPU only"
        return None

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        super().__init__(model, settings)
        self._plan = plan_for(model.preset)
        self.precision = settings.precision_or("fp32")
        exact, limit = self.options["exact"], self.options["max_packed_mib"]
        limit = self.options["max_packed_mib"] = None if limit is None else float(limit)
        weights, biases = folded_layers(model.state, model.preset.conv_layers)
        widths = [(weight.shape[1], weight.shape[0]) for weight in weights]
        seconds = None
        if self.options["autotune"]:
            seconds = tuned_seconds(self._plan, widths, self.precision, exact, host.num_threads(self.threads))
        self._choices: list[LayerChoice] = choose_algorithms(
            self._plan, widths, self.precision, limit, exact=exact, seconds=seconds
        )
        algorithms = [choice.algorithm for choice in self._choices]
        prefix = "text_encoder."
        text = {name.removeprefix(prefix): array for name, array in model.state.items() if name.startswith(prefix)}
        with fork_waits:  # NumPy's BLAS transforms the weights: a child forked meanwhile would hang in its threads
            self._conv = NativeProposalConv(weights, biases, self._plan, algorithms)
            self._video = _video_encoder(model.preset, model.state, self._plan, self._conv)
            self._text = NativeTextEncoder(text, model.text, self.precision)

    def with_threads(self, threads: int) -> NativeBackend:
        other = copy.copy(self)
        other.threads = threads
        return other

    def encode_video(self, pre_clips: Float32) -> Branches:
        shape = (len(pre_clips), self._plan.num_proposals, self.preset.joint_size)
        contrastive, iou = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._video.run(
            pre_clips=np.ascontiguousarray(pre_clips),
            contrastive=contrastive,
            iou=iou,
            threads=host.num_threads(self.threads),
        )
        return contrastive, iou

    def encode_text(self, token_ids: Sequence[Int64]) -> Branches:
        return self._text(token_ids, self.threads)

    def score(self, video: Branches, text: Branches) -> Branches:
        arrays = [np.ascontiguousarray(array) for array in (*video, *text)]
        return ops.match_scores(arrays[0], arrays[1], arrays[2], arrays[3], self.threads)

    def top_moments(self, video: Branches, text: Branches, moments: Float32, top_k: int) -> Selection:
        return match_moments(video, text, moments, self.preset, top_k, self.threads)

    def top_moments_of_pairs(
        self, pairs: Sequence[tuple[Branches, Branches]], moments: Float32, top_k: int
    ) -> Selection:
        return match_pairs(pairs, moments, self.preset, top_k, self.threads)

    def info(self) -> dict[str, Any]:
        return {
            "device": "cpu",
            "precision": self.precision,
            "threads": host.num_threads(self.threads),
            "algorithms": list(self._conv.algorithms),
            "packed_weights_mib": round(sum(self._conv.packed_mib), 1),
            "options": dict(self.options),
            "packed_text_mib": round(self._text.packed_mib, 1),
        }


def _video_encoder(preset: Preset, state: State, plan: ProposalPlan, conv: NativeProposalConv) -> host._C.VideoEncoder:
    joint, width = preset.joint_size, preset.conv_hidden_size
    padded = -(-joint // _HEAD_PAD) * _HEAD_PAD
    heads_weight = np.zeros((2, padded, width), np.float32)
    heads_bias = np.zeros((2, padded), np.float32)
    for branch, name in enumerate(("contrastive", "iou")):
        head = f"proposal_conv.conv1x1_{name}"
        heads_weight[branch, :joint] = state[f"{head}.weight"].reshape(joint, width)
        heads_bias[branch, :joint] = state[f"{head}.bias"]
    arguments: dict[str, Any] = {"cells": plan.inputs}
    if preset.pooling == "conv":
        arguments = {"map_convs": _map_convs(preset, state), "map_rows": _map_rows(preset, plan)}
    return host._C.VideoEncoder(
        conv=conv.native,
        clip_weight=np.ascontiguousarray(state["featpool.conv.weight"][:, :, 0]),
        clip_bias=np.ascontiguousarray(state["featpool.conv.bias"]),
        pre_clips=preset.num_pre_clips,
        kernel=preset.clip_pool_kernel,
        stride=preset.clip_pool_stride,
        heads_weight=heads_weight.reshape(2 * padded, width),
        heads_bias=heads_bias.reshape(2 * padded),
        joint=joint,
        **arguments,
    )


def _map_convs(preset: Preset, state: State) -> list[tuple[Float32, Float32, Int32]]:
    """Weight, bias and neighbours of each learned convolution along a diagonal, see `model.MomentMap`."""
    convs, length = [], preset.num_clips
    diagonals = proposal_diagonals(preset.num_clips, preset.pooling_counts)
    for number, ((kernel, stride), (rows, _)) in enumerate(
        zip(pool_steps(preset.pooling_counts), diagonals, strict=True)
    ):
        weight = np.ascontiguousarray(state[f"feat2d.convs.{number}.weight"])
        neighbours = stride * np.arange(len(rows))[:, None] + np.arange(kernel)
        assert neighbours.max(initial=-1) < length
        convs.append((weight, np.ascontiguousarray(state[f"feat2d.convs.{number}.bias"]), neighbours.astype(np.int32)))
        length = len(rows)
    return convs


def _map_rows(preset: Preset, plan: ProposalPlan) -> Int32:
    """For each input cell its row among the clips and then all diagonals, int32 [R_0]."""
    row_of = diagonal_rows(preset.num_clips, preset.pooling_counts)
    return row_of[plan.inputs[:, 0], plan.inputs[:, 1]].astype(np.int32)
