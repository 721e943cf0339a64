"""The GPU engine's own ops as PyTorch operators `mmn_fast::*`, which torch.compile and torch.export see through.

On CUDA tensors they queue kernels on torch's current stream and never wait. On CPU tensors they run the kernels' twins:
the same source, compiled by the host compiler, so that everything above them can be tested without a device.

Symbols: B videos, T pre-clips, N clips, C channels, P proposals, J joint width, S sentences, Q pairs of a video and a
sentence. `dtype` is float32, float16 or bfloat16, one for all tensors of a call that are marked so. What a kernel
cannot check without waiting (that an index is in range) is the caller's word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmn_fast.kernels import native

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_ELEMENTS = tuple(_DTYPES)
_FLOAT = (torch.float32,)
_INT = (torch.int32,)

__all__ = ["clip_pool", "conv_epilogue", "feature_pool", "heads", "moment_map", "pair_moments", "pair_scores"]


def _op(schema: str, fake: Callable[..., Any] | None = None, mutates: Sequence[str] = ()) -> Callable[..., Any]:
    """Register a function as `mmn_fast::<its name>` with the given signature; the operator replaces it."""

    def register(function: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(
            f"mmn_fast::{function.__name__}", function, mutates_args=tuple(mutates), schema=schema
        )
        op.register_fake(fake or (lambda *_: None))
        return op

    return register


def _check(
    name: str,
    value: Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device | None = None,
) -> None:
    native.require_tensor(name, value, dtypes, shape, device, cuda_only=False)


def _where(tensor: Tensor) -> tuple[int, int]:
    """Device number and stream for the extension; -1 for the twin."""
    if not tensor.is_cuda:
        return -1, 0
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream


def _pre_clips_like(features: Tensor, starts: Tensor, ends: Tensor, streams: list[int], dtype: torch.dtype) -> Tensor:
    return features.new_empty((starts.shape[0], features.shape[1]), dtype=dtype)


@_op("(Tensor features, Tensor starts, Tensor ends, int[] streams, ScalarType dtype) -> Tensor", _pre_clips_like)
def feature_pool(features: Tensor, starts: Tensor, ends: Tensor, streams: list[int], dtype: torch.dtype) -> Tensor:
    """Normalise each stream of each row and average spans of rows into pre-clips (`features.pre_clips`).

    Equivalent to (one stream):
        rows = F.normalize(features, dim=1)
        torch.stack([rows[s:e].mean(0) for s, e in zip(starts, ends)]).to(dtype)

    Args:
        features: float32 [rows, D], the rows of all videos.
        starts: int32 [B T], first row of each pre-clip.
        ends: int32 [B T], one past its last row; larger than the start.
        streams: widths of the streams side by side, 1 to 4 of them; their sum is D.
        dtype: of the result.

    Returns:
        dtype [B T, D].

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    _check("features", features, _FLOAT, (None, None))
    rows, width = features.shape
    _check("starts", starts, _INT, (None,), features.device)
    _check("ends", ends, _INT, (starts.shape[0],), features.device)
    if sum(streams) != width or min(streams, default=0) < 1:
        raise ValueError(f"streams: expected widths that add up to {width}, got {list(streams)}")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    out = _pre_clips_like(features, starts, ends, streams, dtype)
    norms = features.new_empty((rows, len(streams), 2))
    native.extension.gpu_feature_pool(
        features.data_ptr(),
        starts.data_ptr(),
        ends.data_ptr(),
        norms.data_ptr(),
        out.data_ptr(),
        rows,
        len(starts),
        list(streams),
        _DTYPES[dtype],
        *_where(features),
    )
    return out


def _clips_like(products: Tensor, bias: Tensor, kernel: int, stride: int) -> Tensor:
    videos, pre_clips, channels = products.shape
    return products.new_empty(((pre_clips - kernel) // stride + 1, videos, channels))


@_op("(Tensor products, Tensor bias, int kernel, int stride) -> Tensor", _clips_like)
def clip_pool(products: Tensor, bias: Tensor, kernel: int, stride: int) -> Tensor:
    """Bias, ReLU and average over pre-clips, after the product of the 1x1 convolution (`reference.clip_pool`).

    Equivalent to:
        F.avg_pool1d((products + bias).relu().mT, kernel, stride).permute(2, 0, 1)

    Args:
        products: dtype [B, T, C].
        bias: float32 [C].
        kernel: pre-clips averaged per clip, 1 to T.
        stride: pre-clips between clips.

    Returns:
        dtype [N, B, C].

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    _check("products", products, _ELEMENTS, (None, None, None))
    videos, pre_clips, channels = products.shape
    _check("bias", bias, _FLOAT, (channels,), products.device)
    if not 1 <= kernel <= pre_clips:
        raise ValueError(f"kernel: expected 1 to {pre_clips}, got {kernel}")
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    out = _clips_like(products, bias, kernel, stride)
    native.extension.gpu_clip_pool(
        products.data_ptr(),
        bias.data_ptr(),
        out.data_ptr(),
        videos,
        pre_clips,
        channels,
        len(out),
        kernel,
        stride,
        _DTYPES[products.dtype],
        *_where(products),
    )
    return out


@_op("(Tensor clips, Tensor positions, Tensor(a!) map_padded) -> ()", mutates=["map_padded"])
def moment_map(clips: Tensor, positions: Tensor, map_padded: Tensor) -> None:
    """Lay the 2D map of max pools into a zero-bordered map (`reference.sparse_max_pool`); nothing else is written.

    Equivalent to:
        for i, j in (positions >= 0).nonzero():
            map_padded[positions[i, j]] = clips[i : j + 1].amax(0)

    Args:
        clips: dtype [N, B, C].
        positions: int32 [N, N], for cell (i, j) its row of the map, each row once, or -1; nothing below the diagonal.
        map_padded: dtype [rows, B, C].

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape or layout differs.
    """
    _check("clips", clips, _ELEMENTS, (None, None, None))
    n, videos, channels = clips.shape
    _check("positions", positions, _INT, (n, n), clips.device)
    _check("map_padded", map_padded, (clips.dtype,), (None, videos, channels), clips.device)
    native.extension.gpu_moment_map(
        clips.data_ptr(),
        positions.data_ptr(),
        map_padded.data_ptr(),
        n,
        videos,
        channels,
        _DTYPES[clips.dtype],
        *_where(clips),
    )


@_op(
    "(Tensor products, Tensor bias, Tensor weights, Tensor positions, Tensor(a!) out, bool videos_first) -> ()",
    mutates=["out"],
)
def conv_epilogue(
    products: Tensor, bias: Tensor, weights: Tensor, positions: Tensor, out: Tensor, videos_first: bool
) -> None:
    """Bias, ReLU and cell weights after a convolution over a box, and each cell to its place; nothing else is written.

    Equivalent to (videos_first):
        here = positions >= 0
        out[:, positions[here]] = ((products + bias).relu() * weights[:, None])[:, here]

    Args:
        products: dtype [B, cells, C].
        bias: float32 [C].
        weights: float32 [cells].
        positions: int32 [cells], each place once, or -1.
        out: dtype [B, places, C] if `videos_first`, else [places, B, C].
        videos_first: layout of `out`.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape or layout differs.
    """
    _check("products", products, _ELEMENTS, (None, None, None))
    videos, cells, channels = products.shape
    _check("bias", bias, _FLOAT, (channels,), products.device)
    _check("weights", weights, _FLOAT, (cells,), products.device)
    _check("positions", positions, _INT, (cells,), products.device)
    shape = (videos, None, channels) if videos_first else (None, videos, channels)
    _check("out", out, (products.dtype,), shape, products.device)
    native.extension.gpu_conv_epilogue(
        products.data_ptr(),
        bias.data_ptr(),
        weights.data_ptr(),
        positions.data_ptr(),
        out.data_ptr(),
        videos,
        cells,
        channels,
        channels if videos_first else videos * channels,
        out.shape[1] * channels if videos_first else channels,
        _DTYPES[products.dtype],
        *_where(products),
    )


def _heads_like(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    proposals, videos, width = products.shape
    return tuple(products.new_empty((videos, proposals, width // 2)) for _ in range(2))  # type: ignore[return-value]


@_op("(Tensor products, Tensor bias) -> (Tensor, Tensor)", _heads_like)
def heads(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Bias and L2 normalisation after the product with both heads.

    Equivalent to:
        tuple(F.normalize(head, dim=-1).transpose(0, 1) for head in (products + bias).chunk(2, -1))

    Args:
        products: dtype [P, B, 2 J], contrastive then iou.
        bias: float32 [2 J].

    Returns:
        contrastive and iou, dtype [B, P, J] each, unit norm over J.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape or layout differs.
    """
    _check("products", products, _ELEMENTS, (None, None, None))
    proposals, videos, width = products.shape
    if width % 2:
        raise ValueError(f"products: expected two heads side by side, got a width of {width}")
    _check("bias", bias, _FLOAT, (width,), products.device)
    contrastive, iou = _heads_like(products, bias)
    native.extension.gpu_heads(
        products.data_ptr(),
        bias.data_ptr(),
        contrastive.data_ptr(),
        iou.data_ptr(),
        proposals,
        videos,
        width // 2,
        _DTYPES[products.dtype],
        *_where(products),
    )
    return contrastive, iou


def _pair_scores_like(
    video_contrastive: Tensor,
    video_iou: Tensor,
    text_contrastive: Tensor,
    text_iou: Tensor,
    pair_videos: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (pair_videos.shape[0], video_contrastive.shape[1])
    return tuple(video_contrastive.new_empty(shape, dtype=torch.float32) for _ in range(3))  # type: ignore[return-value]


@_op(
    "(Tensor video_contrastive, Tensor video_iou, Tensor text_contrastive, Tensor text_iou, Tensor pair_videos,"
    " Tensor pair_sentences, float power, bool product) -> (Tensor, Tensor, Tensor)",
    _pair_scores_like,
)
def pair_scores(
    video_contrastive: Tensor,
    video_iou: Tensor,
    text_contrastive: Tensor,
    text_iou: Tensor,
    pair_videos: Tensor,
    pair_sentences: Tensor,
    power: float,
    product: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Match pairs of a video and a sentence over every proposal, and fuse (`reference.moment_scores`, `fuse_scores`).

    Args:
        video_contrastive: dtype [B, P, J], unit norm.
        video_iou: dtype [B, P, J].
        text_contrastive: dtype [S, J].
        text_iou: dtype [S, J].
        pair_videos: int32 [Q], the video of each pair, or -1 for a pair that gets zeros.
        pair_sentences: int32 [Q].
        power: p of the power fusion.
        product: fuse by the plain product.

    Returns:
        contrastive, iou and fused scores, float32 [Q, P] each.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape or layout differs.
    """
    _check("video_contrastive", video_contrastive, _ELEMENTS, (None, None, None))
    device, same = video_contrastive.device, (video_contrastive.dtype,)
    _, proposals, joint = video_contrastive.shape
    _check("video_iou", video_iou, same, tuple(video_contrastive.shape), device)
    _check("text_contrastive", text_contrastive, same, (None, joint), device)
    _check("text_iou", text_iou, same, tuple(text_contrastive.shape), device)
    _check("pair_videos", pair_videos, _INT, (None,), device)
    _check("pair_sentences", pair_sentences, _INT, (len(pair_videos),), device)
    scores = _pair_scores_like(video_contrastive, video_iou, text_contrastive, text_iou, pair_videos)
    native.extension.gpu_pair_scores(
        video_contrastive.data_ptr(),
        video_iou.data_ptr(),
        text_contrastive.data_ptr(),
        text_iou.data_ptr(),
        pair_videos.data_ptr(),
        pair_sentences.data_ptr(),
        scores[2].data_ptr(),
        scores[0].data_ptr(),
        scores[1].data_ptr(),
        len(pair_videos),
        proposals,
        joint,
        power,
        product,
        _DTYPES[video_contrastive.dtype],
        *_where(video_contrastive),
    )
    return scores


def _pair_moments_like(fused: Tensor, cells: Tensor, durations: Tensor, top_k: int, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (fused.shape[0], top_k)
    return fused.new_empty(shape, dtype=torch.int32), fused.new_empty(shape)


@_op(
    "(Tensor fused, Tensor cells, Tensor durations, int top_k, int clips, float iou_threshold) -> (Tensor, Tensor)",
    _pair_moments_like,
)
def pair_moments(
    fused: Tensor, cells: Tensor, durations: Tensor, top_k: int, clips: int, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The best proposals of each pair after greedy non-maximum suppression (`reference.temporal_nms`).

    Args:
        fused: float32 [Q, P]; 0 and NaN are no candidates.
        cells: int32 [P, 2] as (i, j).
        durations: float32 [Q], seconds; the moments are those of `geometry.cells_to_moments`, bit for bit.
        top_k: at least 1; may exceed P.
        clips: N.
        iou_threshold: IoU above which the worse of two moments goes, 0 to 1.

    Returns:
        chosen int32 [Q, top_k], best first, -1 where fewer are left; their fused scores float32 [Q, top_k], 0 there.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    _check("fused", fused, _FLOAT, (None, None))
    pairs, proposals = fused.shape
    _check("cells", cells, _INT, (proposals, 2), fused.device)
    _check("durations", durations, _FLOAT, (pairs,), fused.device)
    if top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected 0 to 1, got {iou_threshold}")
    chosen, scores = _pair_moments_like(fused, cells, durations, top_k)
    keys = torch.empty_like(fused, dtype=torch.int32)
    native.extension.gpu_pair_moments(
        fused.data_ptr(),
        cells.data_ptr(),
        durations.data_ptr(),
        keys.data_ptr(),
        chosen.data_ptr(),
        scores.data_ptr(),
        pairs,
        proposals,
        top_k,
        clips,
        iou_threshold,
        *_where(fused),
    )
    return chosen, scores
