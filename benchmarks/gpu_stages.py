"""Times the GPU engine's stages one by one, from features to moments, each alone in a CUDA graph.

Bytes count every array that a stage must read or write once: inputs, outputs, weights, and a library's product if it
stands between two kernels. Errors are those of the first video, against the same stage in float32 (no TF32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_timing import INPUT_SETS, Bench
from mmn_fast.features import pre_clip_spans
from mmn_fast.geometry import plan_for
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.kernels.gpu import moment_ops, video_ops
from mmn_fast.kernels.gpu.device import strict_arithmetic
from mmn_fast.runtime.video_branch import VideoBranch

if TYPE_CHECKING:
    from mmn_fast.checkpoint import LoadedModel

Tensors = tuple[Tensor, ...]

_ROWS = 64  # source features per video
_QUERIES = 4  # sentences per video
_TOP_K = 5


@dataclass(frozen=True)
class Stage:
    """One stage of the engine, ready to be timed.

    Attributes:
        name: the stage's name in the lines.
        run: computes the outputs from one set of inputs.
        inputs: sets of inputs, used in turn.
        error: computes the error of the outputs for the first set.
        flop: operations of the products.
        moved: bytes read and written.
    """

    name: str
    run: Callable[..., Tensors]
    inputs: Sequence[Tensors]
    error: Callable[[Tensors], float]
    flop: float
    moved: float


def video_flop(model: LoadedModel) -> float:
    """FLOP of one video's products from pre-clips to embeddings; the convolution counts needed cells and taps only."""
    preset, plan = model.preset, plan_for(model.preset)
    clip = preset.num_pre_clips * preset.input_size * preset.hidden_size
    conv = plan.exact_taps * preset.conv_hidden_size * (preset.hidden_size + preset.conv_hidden_size) / 2
    heads = plan.num_proposals * preset.conv_hidden_size * 2 * preset.joint_size
    return 2.0 * (clip + conv + heads)


def text_flop(model: LoadedModel) -> float:
    """FLOP of one word piece's products in the text encoder, without those of attention scores and values."""
    text = model.text
    return 2.0 * text.num_layers * (4 * text.width**2 + 2 * text.width * text.ffn_width)


def bench_stages(bench: Bench, model: LoadedModel, batches: Sequence[int]) -> None:
    """Time every stage for each number of videos, in fp16.

    Args:
        bench: device, time limit and results.
        model: the model of the stages.
        batches: numbers of videos.
    """
    for videos in batches:
        what = f"{model.preset.name}, batch {videos}, stages"
        if bench.out_of_time(what):
            return
        try:
            _bench_batch(bench, model, videos)
        except (RuntimeError, MemoryError) as problem:
            print(f"not measured: {what}: {str(problem).splitlines()[0]}", flush=True)


def _bench_batch(bench: Bench, model: LoadedModel, videos: int) -> None:
    for stage in _stages(model, torch.device(bench.device), videos, INPUT_SETS):
        error = stage.error(stage.run(*stage.inputs[0]))
        timing = bench.time_captured([partial(stage.run, *inputs) for inputs in stage.inputs])
        facts = {"preset": model.preset.name, "batch": videos}
        bench.write(stage.name, "mmn_fast fp16", timing, error, (stage.flop, stage.moved), **facts)


class _Work:
    """The work of a model's stages for one number of videos; `exact` does the same in float32."""

    def __init__(self, model: LoadedModel, device: torch.device, videos: int) -> None:
        self.model, self.device, self.videos = model, device, videos
        preset, self.plan = model.preset, plan_for(model.preset)
        self.layers = folded_layers(model.state, preset.conv_layers)
        self.branch, self.exact = (
            VideoBranch(preset, model.state, dtype, device) for dtype in (torch.float16, torch.float32)
        )
        self.pairs = torch.arange(_QUERIES * videos, dtype=torch.int32, device=device)
        spans = pre_clip_spans(_ROWS, preset.num_pre_clips, preset.clamp_pre_clips)
        self.starts, self.ends = (
            torch.from_numpy(np.concatenate([side + _ROWS * n for n in range(videos)]).astype(np.int32)).to(device)
            for side in spans
        )
        self.cells = torch.from_numpy(self.plan.cells).to(device)
        self.durations = torch.full((len(self.pairs),), 30.0, device=device)

    def pool(self, rows: Tensor, dtype: torch.dtype = torch.float16) -> Tensors:
        preset = self.model.preset
        pooled = video_ops.feature_pool(rows, self.starts, self.ends, list(preset.feature_streams), dtype)
        return (pooled.view(self.videos, preset.num_pre_clips, preset.input_size),)

    def scores(self, *embeddings: Tensor) -> Tensors:
        preset, videos = self.model.preset, self.pairs // _QUERIES
        fusion = preset.score_power, preset.score_fusion == "product"
        return (moment_ops.pair_scores(*embeddings, videos, self.pairs, *fusion)[2],)

    def moments(self, fused: Tensor) -> Tensors:
        preset = self.model.preset
        return tuple(
            moment_ops.pair_top_moments(fused, self.cells, self.durations, _TOP_K, preset.num_clips, preset.nms_iou)
        )

    def text(self) -> Tensors:
        shape = len(self.pairs), self.model.preset.joint_size
        made = [torch.nn.functional.normalize(torch.randn(shape, device=self.device), dim=-1) for _ in range(2)]
        return tuple(one.to(torch.float16) for one in made)


def _stages(model: LoadedModel, device: torch.device, videos: int, sets: int) -> list[Stage]:
    work = _Work(model, device, videos)
    preset, plan, branch, exact = model.preset, work.plan, work.branch, work.exact
    T, D, P, J = preset.num_pre_clips, preset.input_size, plan.num_proposals, preset.joint_size
    C, H, Q = preset.hidden_size, preset.conv_hidden_size, len(work.pairs)
    rows = [(torch.randn(videos * _ROWS, D, device=device),) for _ in range(sets)]
    pre = [work.pool(*one) for one in rows]
    clips = [(branch.clips(*one),) for one in pre]
    maps = [(branch.moment_map(*one),) for one in clips]
    convolved = [(branch.conv(*one),) for one in maps]
    embedded = [(*branch.embeddings(*one), *work.text()) for one in convolved]
    fused = [work.scores(*one) for one in embedded]
    weights = 2 * sum(weight.size for weight in work.layers[0])
    conv_flop = video_flop(model) - 2.0 * (T * D * C + P * H * 2 * J)
    exact_rows = work.pool(*rows[0], torch.float32)
    exact_fused = work.scores(*(one.float() for one in embedded[0]))
    best = fused[0][0].max(1).values
    return [
        Stage(
            *("feature_pool", work.pool, rows, lambda found: _difference(found[0], exact_rows[0])),
            *(0.0, _size(*rows[0], *pre[0])),
        ),
        Stage(
            *("clip_pool", lambda x: (branch.clips(x),), pre, _compared(exact.clips, pre[0][0], 0)),
            *(2.0 * videos * T * D * C, _size(*pre[0], *clips[0]) + 2 * D * C + 2 * 2 * videos * T * C),
        ),
        Stage(
            *("moment_map", lambda x: (branch.moment_map(x),), clips, _compared(exact.moment_map, clips[0][0], 1)),
            *(0.0, _size(*clips[0], *maps[0]) + 2 * len(plan.inputs) * videos * C),
        ),
        Stage(
            *("proposal_conv", lambda x: (branch.conv(x),), maps, _compared(exact.conv, maps[0][0], 1)),
            *(videos * conv_flop, _size(*maps[0], *convolved[0]) + weights),
        ),
        Stage(
            *("heads", branch.embeddings, convolved, _compared(exact.embeddings, convolved[0][0], 1, 0)),
            2.0 * videos * P * H * 2 * J,
            _size(*convolved[0], *embedded[0][:2]) + 2 * H * 2 * J + 2 * 2 * videos * P * 2 * J,
        ),
        Stage(
            *("pair_scores", work.scores, embedded, lambda found: _difference(found[0], exact_fused[0])),
            *(4.0 * Q * P * J, _size(*embedded[0], *fused[0])),
        ),
        Stage(
            *("pair_top_moments", work.moments, fused, lambda found: _difference(found[1][:, 0], best)),
            *(0.0, _size(*fused[0])),
        ),
    ]


def _compared(
    reference: Callable[[Tensor], Tensors | Tensor], given: Tensor, axis: int, out_axis: int = 1
) -> Callable[[Tensors], float]:
    """Make the function that computes the first video's error; `axis` and `out_axis` are the axes of videos."""

    def error(found: Tensors) -> float:
        with strict_arithmetic():
            expected = reference(given.narrow(axis, 0, 1).float().contiguous())
        both = zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True)
        return max(_difference(ours.narrow(out_axis, 0, 1), theirs) for ours, theirs in both)

    return error


def _size(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max())
