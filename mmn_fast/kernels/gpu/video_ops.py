"""The GPU engine's own ops from features to embeddings, as PyTorch operators `mmn_fast::*`.

torch.compile and torch.export trace these operators. `moment_ops` has the ops from embeddings to moments.

On CUDA tensors the ops queue kernels on torch's current stream and never wait. On CPU tensors they run the kernels'
twins: the same source, compiled by the host compiler, so that all callers can be tested without a device.

Symbols: B videos, T pre-clips, N clips, C channels, P proposals, J joint width. `dtype` is float32, float16 or
bfloat16, the same for all tensors of a call that are marked `dtype`. A kernel cannot check index ranges without
waiting, so the caller guarantees them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmn_fast.kernels import host
from mmn_fast.kernels.gpu.operator import DTYPES, ELEMENTS, FLOAT, INT, check, operator, where

__all__ = ["clip_pool", "conv_epilogue", "feature_pool", "heads", "sparse_max_pool"]


def _pre_clips_like(features: Tensor, starts: Tensor, ends: Tensor, streams: list[int], dtype: torch.dtype) -> Tensor:
    return features.new_empty((starts.shape[0], features.shape[1]), dtype=dtype)


@operator("(Tensor features, Tensor starts, Tensor ends, int[] streams, ScalarType dtype) -> Tensor", _pre_clips_like)
def feature_pool(features: Tensor, starts: Tensor, ends: Tensor, streams: list[int], dtype: torch.dtype) -> Tensor:
    """Normalise each stream of each row and average spans of rows into pre-clips (`features.pre_clips`).

    Equivalent to (one stream):
        rows = F.normalize(features, dim=1)
        torch.stack([rows[s:e].mean(0) for s, e in zip(starts, ends)]).to(dtype)

    Args:
        features: float32 [rows, D], the rows of all videos.
        starts: int32 [B T], first row of each pre-clip.
        ends: int32 [B T], one past each pre-clip's last row; larger than its start.
        streams: widths of 1 to 4 streams side by side; their sum is D.
        dtype: the result's dtype.

    Returns:
        dtype [B T, D].

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    check("features", features, FLOAT, (None, None))
    rows, width = features.shape
    check("starts", starts, INT, (None,), features.device)
    check("ends", ends, INT, (starts.shape[0],), features.device)
    if sum(streams) != width or min(streams, default=0) < 1:
        raise ValueError(f"streams: expected widths that add up to {width}, got {list(streams)}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    out = _pre_clips_like(features, starts, ends, streams, dtype)
    norms = features.new_empty((rows, len(streams), 2))
    host.extension.gpu_feature_pool(
        features=features.data_ptr(),
        starts=starts.data_ptr(),
        ends=ends.data_ptr(),
        norms=norms.data_ptr(),
        out=out.data_ptr(),
        rows=rows,
        pre_clips=len(starts),
        streams=list(streams),
        dtype=DTYPES[dtype],
        **where(features),
    )
    return out


def _clips_like(products: Tensor, bias: Tensor, kernel: int, stride: int) -> Tensor:
    videos, pre_clips, channels = products.shape
    return products.new_empty(((pre_clips - kernel) // stride + 1, videos, channels))


@operator("(Tensor products, Tensor bias, int kernel, int stride) -> Tensor", _clips_like)
def clip_pool(products: Tensor, bias: Tensor, kernel: int, stride: int) -> Tensor:
    """Apply bias, ReLU and the average over pre-clips to the 1x1 convolution's product (`reference.clip_pool`).

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
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    check("products", products, ELEMENTS, (None, None, None))
    videos, pre_clips, channels = products.shape
    check("bias", bias, FLOAT, (channels,), products.device)
    if not 1 <= kernel <= pre_clips:
        raise ValueError(f"kernel: expected 1 to {pre_clips}, got {kernel}")
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    out = _clips_like(products, bias, kernel, stride)
    host.extension.gpu_clip_pool(
        products=products.data_ptr(),
        bias=bias.data_ptr(),
        out=out.data_ptr(),
        videos=videos,
        pre_clips=pre_clips,
        channels=channels,
        clips=len(out),
        kernel=kernel,
        stride=stride,
        dtype=DTYPES[products.dtype],
        **where(products),
    )
    return out


@operator("(Tensor clips, Tensor positions, Tensor(a!) map_padded) -> ()", mutates=["map_padded"])
def sparse_max_pool(clips: Tensor, positions: Tensor, map_padded: Tensor) -> None:
    """Write the 2D map of max pools into a zero-bordered map (`reference.sparse_max_pool`); nothing else is written.

    Equivalent to:
        for i, j in (positions >= 0).nonzero():
            map_padded[positions[i, j]] = clips[i : j + 1].amax(0)

    Args:
        clips: dtype [N, B, C].
        positions: int32 [N, N], the map's row for cell (i, j), each row once, or -1; -1 everywhere below the diagonal.
        map_padded: dtype [rows, B, C].

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape or layout differs.
    """
    check("clips", clips, ELEMENTS, (None, None, None))
    n, videos, channels = clips.shape
    check("positions", positions, INT, (n, n), clips.device)
    check("map_padded", map_padded, (clips.dtype,), (None, videos, channels), clips.device)
    host.extension.gpu_sparse_max_pool(
        clips=clips.data_ptr(),
        positions=positions.data_ptr(),
        map=map_padded.data_ptr(),
        n=n,
        videos=videos,
        channels=channels,
        dtype=DTYPES[clips.dtype],
        **where(clips),
    )


@operator(
    "(Tensor products, Tensor bias, Tensor weights, Tensor positions, Tensor(a!) out, bool videos_first) -> ()",
    mutates=["out"],
)
def conv_epilogue(
    products: Tensor, bias: Tensor, weights: Tensor, positions: Tensor, out: Tensor, videos_first: bool
) -> None:
    """Apply bias, ReLU and cell weights after a convolution over a box; write each cell to its place, nothing else.

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
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape or layout differs.
    """
    check("products", products, ELEMENTS, (None, None, None))
    videos, cells, channels = products.shape
    check("bias", bias, FLOAT, (channels,), products.device)
    check("weights", weights, FLOAT, (cells,), products.device)
    check("positions", positions, INT, (cells,), products.device)
    shape = (videos, None, channels) if videos_first else (None, videos, channels)
    check("out", out, (products.dtype,), shape, products.device)
    host.extension.gpu_conv_epilogue(
        products=products.data_ptr(),
        bias=bias.data_ptr(),
        weights=weights.data_ptr(),
        positions=positions.data_ptr(),
        out=out.data_ptr(),
        videos=videos,
        cells=cells,
        channels=channels,
        cell_stride=channels if videos_first else videos * channels,
        video_stride=out.shape[1] * channels if videos_first else channels,
        dtype=DTYPES[products.dtype],
        **where(products),
    )


def _heads_like(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    proposals, videos, width = products.shape
    return tuple(products.new_empty((videos, proposals, width // 2)) for _ in range(2))  # type: ignore[return-value]


@operator("(Tensor products, Tensor bias) -> (Tensor, Tensor)", _heads_like)
def heads(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Apply bias and L2 normalisation after the product with both heads.

    Equivalent to:
        tuple(F.normalize(head, dim=-1).transpose(0, 1) for head in (products + bias).chunk(2, -1))

    Args:
        products: dtype [P, B, 2 J], first contrastive, then iou.
        bias: float32 [2 J].

    Returns:
        contrastive and iou, dtype [B, P, J] each, unit norm over J.

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape or layout differs.
    """
    check("products", products, ELEMENTS, (None, None, None))
    proposals, videos, width = products.shape
    if width % 2:
        raise ValueError(f"products: expected two heads side by side, got a width of {width}")
    check("bias", bias, FLOAT, (width,), products.device)
    contrastive, iou = _heads_like(products, bias)
    host.extension.gpu_heads(
        products=products.data_ptr(),
        bias=bias.data_ptr(),
        contrastive=contrastive.data_ptr(),
        iou=iou.data_ptr(),
        proposals=proposals,
        videos=videos,
        joint=width // 2,
        dtype=DTYPES[products.dtype],
        **where(products),
    )
    return contrastive, iou
