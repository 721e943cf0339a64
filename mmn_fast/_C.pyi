"""The extension that CMakeLists.txt builds."""

# ruff: noqa: N999  (the leading underscore and capital are the convention for an extension)

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

class BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    cuda: bool
    cuda_version: str | None
    cuda_archs: list[str]

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def available_cpu_isas() -> list[str]: ...
def bf16_isas(tiles: bool = False) -> list[str]: ...
def kernel_isas(isa: str | None = None) -> dict[str, str]: ...
def temporal_nms(
    scores: npt.NDArray[np.float32],  # [S, P]
    moments: npt.NDArray[np.float32],  # [P, 2] seconds
    iou_threshold: float,
    top_k: int,
    out: npt.NDArray[np.int32],  # [S, top_k]
    threads: int,
    isa: str | None = None,
) -> None: ...
def match_scores(
    video_contrastive: npt.NDArray[np.float32],  # [P, J]
    video_iou: npt.NDArray[np.float32],  # [P, J]
    text_contrastive: npt.NDArray[np.float32],  # [S, J]
    text_iou: npt.NDArray[np.float32],  # [S, J]
    contrastive: npt.NDArray[np.float32],  # [S, P]
    iou: npt.NDArray[np.float32],  # [S, P]
    threads: int,
    isa: str | None = None,
) -> None: ...
def top_moments(
    video_contrastive: npt.NDArray[np.float32],  # [P, J]
    video_iou: npt.NDArray[np.float32],  # [P, J]
    text_contrastive: npt.NDArray[np.float32],  # [S, J]
    text_iou: npt.NDArray[np.float32],  # [S, J]
    moments: npt.NDArray[np.float32],  # [P, 2] seconds
    fusion: str,
    power: float,
    iou_threshold: float,
    top_k: int,
    cells: npt.NDArray[np.int32],  # [S, top_k]
    scores: npt.NDArray[np.float32],  # [S, top_k]
    threads: int,
    isa: str | None = None,
) -> None: ...
def top_moments_of_pairs(
    pairs: Sequence[tuple[npt.NDArray[np.float32], ...]],  # [P, J] twice, then [S, J] twice
    moments: npt.NDArray[np.float32],  # [B, P, 2] seconds
    fusion: str,
    power: float,
    iou_threshold: float,
    top_k: int,
    cells: npt.NDArray[np.int32],  # [all S, top_k]
    scores: npt.NDArray[np.float32],  # [all S, top_k]
    threads: int,
    isa: str | None = None,
) -> None: ...
def search_moments(
    contrastive: npt.NDArray[np.floating],  # float32 or float16 [R, J]
    iou: npt.NDArray[np.floating],  # [R, J] of the same type
    contrastive_codes: tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None,  # [R, J], [R, 2]
    iou_codes: tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None,
    norm: float,
    starts: npt.NDArray[np.int64],  # [W]
    window_videos: npt.NDArray[np.int64],  # [W]
    window_numbers: npt.NDArray[np.int64],  # [W]
    proposals: int,
    text_contrastive: npt.NDArray[np.float32],  # [S, J]
    text_iou: npt.NDArray[np.float32],  # [S, J]
    fusion: str,
    power: float,
    least: npt.NDArray[np.float32],  # [S]
    scores: npt.NDArray[np.float32],  # [S, k]
    videos: npt.NDArray[np.int64],  # [S, k]
    windows: npt.NDArray[np.int64],  # [S, k]
    cells: npt.NDArray[np.int32],  # [S, k]
    threads: int,
    isa: str | None = None,
) -> None: ...
def target_iou(
    boxes: npt.NDArray[np.float64],  # [rows, 4], one tube after another
    starts: npt.NDArray[np.int64],  # [K + 1]
    first_frames: npt.NDArray[np.int64],  # [K]
    bounds: npt.NDArray[np.int64],  # [K, N + 1], rows within the tube
    truth: npt.NDArray[np.float64],  # [frames, 4]
    truth_first_frame: int,
    half_open: bool,
    out: npt.NDArray[np.float32],  # [K, N, N]
    threads: int,
) -> None: ...

class ProposalConv:
    def __init__(self, isa: str | None = None) -> None: ...
    def add_direct(
        self,
        weight: npt.NDArray[np.float32],  # [C_out, C_in, taps]
        bias: npt.NDArray[np.float32],  # [C_out]
        neighbours: npt.NDArray[np.int32],  # [R, taps]
        cell_weights: npt.NDArray[np.float32],  # [R]
        cells_in: int,
        terms_a: int = 0,
        terms_b: int = 0,
    ) -> None: ...
    def add_cell_runs(
        self,
        weight: npt.NDArray[np.float32],  # [C_out, C_in, taps]
        bias: npt.NDArray[np.float32],  # [C_out]
        cell_weights: npt.NDArray[np.float32],  # [R]
        cells_in: int,
        slots: npt.NDArray[np.int32],  # [slots]
        outputs: npt.NDArray[np.int32],  # [tiles, 16]
        starts: npt.NDArray[np.int32],  # [tiles]
        tile_taps: npt.NDArray[np.bool_],  # [tiles, taps]
        tap_offsets: npt.NDArray[np.int32],  # [taps]
        stride: int,
    ) -> None: ...
    def add_tiled(
        self,
        c_in: int,
        bias: npt.NDArray[np.float32],  # [C_out]
        cell_weights: npt.NDArray[np.float32],  # [R]
        cells_in: int,
        bt: npt.NDArray[np.float32],  # [n, n]
        at: npt.NDArray[np.float32],  # [m, n]
        inputs: npt.NDArray[np.int32],  # [tiles, n * n]
        outputs: npt.NDArray[np.int32],  # [tiles, m * m]
        terms_a: int = 0,
        terms_b: int = 0,
    ) -> None: ...
    def pack_points(
        self,
        points: npt.NDArray[np.float32],  # [n * n, channels, C_in]
        first: int,
        threads: int,
    ) -> None: ...
    def packed_bytes(self) -> list[int]: ...
    def run(
        self,
        inputs: npt.NDArray[np.float32],  # [B, R_0, C_0]
        out: npt.NDArray[np.float32],  # [B, P, C]
        threads: int,
    ) -> None: ...

class VideoEncoder:
    def __init__(
        self,
        conv: ProposalConv,
        clip_weight: npt.NDArray[np.float32],  # [C, D]
        clip_bias: npt.NDArray[np.float32],  # [C]
        pre_clips: int,
        kernel: int,
        stride: int,
        heads_weight: npt.NDArray[np.float32],  # [2 J', C], J' = J padded to 32
        heads_bias: npt.NDArray[np.float32],  # [2 J']
        joint: int,
        cells: npt.NDArray[np.int32] | None = None,  # [R_0, 2]
        map_convs: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]] = ...,
        map_rows: npt.NDArray[np.int32] | None = None,  # [R_0]
    ) -> None: ...
    def run(
        self,
        pre_clips: npt.NDArray[np.float32],  # [B, T, D]
        contrastive: npt.NDArray[np.float32],  # [B, P, J]
        iou: npt.NDArray[np.float32],  # [B, P, J]
        threads: int,
    ) -> None: ...

class TextEncoder:
    def __init__(
        self,
        word_embeddings: npt.NDArray[np.float32],  # [V, H]
        position_embeddings: npt.NDArray[np.float32],  # [L, H]
        embedding_norm: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [H] each
        sentence_norm: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [H] each
        heads: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [2 J, H], [2 J]
        num_heads: int,
        bert_eps: float,
        sentence_eps: float,
        bf16: bool = False,
        isa: str | None = None,
    ) -> None: ...
    def add_layer(
        self,
        qkv: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [3 H, H], [3 H]
        out: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [H, H], [H]
        attention_norm: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [H] each
        inner: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [F, H], [F]
        outer: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [H, F], [H]
        output_norm: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],  # [H] each
    ) -> None: ...
    def packed_bytes(self) -> int: ...
    def run(
        self,
        token_ids: npt.NDArray[np.int64],  # [tokens]
        starts: npt.NDArray[np.int64],  # [S + 1]
        contrastive: npt.NDArray[np.float32],  # [S, J]
        iou: npt.NDArray[np.float32],  # [S, J]
        threads: int,
    ) -> None: ...

# The GPU engine's ops, see csrc/ops/gpu and kernels/gpu/video_ops.py: addresses, sizes, dtype 0 to 2, device
# (negative: host memory, the twin) and stream.
def gpu_feature_pool(
    features: int,
    starts: int,
    ends: int,
    norms: int,
    out: int,
    rows: int,
    pre_clips: int,
    streams: list[int],
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def gpu_clip_pool(
    products: int,
    bias: int,
    out: int,
    videos: int,
    pre_clips: int,
    channels: int,
    clips: int,
    kernel: int,
    stride: int,
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def gpu_sparse_max_pool(
    clips: int, positions: int, map: int, n: int, videos: int, channels: int, dtype: int, device: int, stream: int
) -> None: ...
def gpu_conv_epilogue(
    products: int,
    bias: int,
    weights: int,
    positions: int,
    out: int,
    videos: int,
    cells: int,
    channels: int,
    cell_stride: int,
    video_stride: int,
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def gpu_fourier_tiles(
    rows: int,
    inputs: int,
    spectra: int,
    tiles: int,
    videos: int,
    channels: int,
    n: int,
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def gpu_fourier_cells(
    spectra: int,
    outputs: int,
    bias: int,
    cell_weights: int,
    out: int,
    tiles: int,
    videos: int,
    channels: int,
    n: int,
    m: int,
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def gpu_heads(
    products: int,
    bias: int,
    contrastive: int,
    iou: int,
    proposals: int,
    videos: int,
    joint: int,
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def gpu_pair_scores(
    video_contrastive: int,
    video_iou: int,
    text_contrastive: int,
    text_iou: int,
    pair_videos: int,
    pair_sentences: int,
    fused: int,
    contrastive: int,
    iou: int,
    pairs: int,
    proposals: int,
    joint: int,
    power: float,
    product: bool,
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def gpu_pair_top_moments(
    fused: int,
    cells: int,
    durations: int,
    keys: int,
    chosen: int,
    chosen_scores: int,
    pairs: int,
    proposals: int,
    top_k: int,
    clips: float,
    iou_threshold: float,
    device: int,
    stream: int,
) -> None: ...
def gpu_temporal_nms(
    scores: int,
    moments: int,
    keys: int,
    out: int,
    queries: int,
    cells: int,
    top_k: int,
    iou_threshold: float,
    device: int,
    stream: int,
) -> None: ...
