"""The model's steps at static sizes, as programs for a `GraphRunner`.

On CPU tensors the programs run the kernels' twins (`kernels.gpu.video_ops`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.geometry import plan_for
from mmn_fast.kernels.gpu import moment_ops, video_ops
from mmn_fast.kernels.gpu.recording import own_stream
from mmn_fast.presets import Preset, TextEncoderConfig
from mmn_fast.runtime.graph_cache import MIB
from mmn_fast.runtime.graph_runner import GraphRunner, Input, Program, Shapes
from mmn_fast.runtime.video_branch import VideoBranch

TextBranch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Token ids int64 [S, L] and lengths int64 [S] -> contrastive and iou, dtype [S, J] each, not normalised."""

# Where each size is read: program → size → (input number, axis).
_SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "load": {},
    "video": {"videos": (0, 0)},
    "features": {"rows": (0, 0), "pre-clips": (1, 0)},
    "text": {"sentences": (0, 0), "tokens": (0, 1)},
    "ground": {"rows": (0, 0), "pre-clips": (1, 0), "sentences": (3, 0), "tokens": (3, 1), "pairs": (5, 0)},
    "score": {"videos": (0, 0), "sentences": (2, 0), "pairs": (4, 0)},
    "moments": {"pairs": (2, 0)},
}


class Programs:
    """The programs of one model.

    | name | inputs | outputs |
    | --- | --- | --- |
    | video | pre-clips, dtype [B, T, D] | contrastive and iou, dtype [B, P, J] |
    | features | rows float32 [R, D], starts and ends int32 [B T] of pre-clips | the same |
    | text | ids int64 [S, L], lengths int64 [S] | contrastive and iou, dtype [S, J] |
    | ground | inputs of features and of text; videos, sentences int32 [Q], durations float32 [Q] | selection [Q] |
    | score | outputs of video and of text; videos, sentences int32 [Q], durations float32 [Q] | selection [Q] |
    | moments | one video, float32 [P, J] twice; text float32 [S, J] twice; moments float32 [P, 2] | selection [S] |

    A selection is chosen int32 and scores float32 [., top_k] from `moment_ops.pair_top_moments`, and whether all scores
    were finite, bool [.]. Sentences, videos and rows that no pair or pre-clip names are not read.

    Args:
        preset: sizes and scoring.
        text: sizes of the text encoder, to compute memory.
        make_video: makes the video branch; called here, because loading may lack memory too.
        make_text: makes the text encoder.
        num_weights: number of weights of both, to compute memory.
        dtype: dtype of the operands.
        device: the device that runs the programs.
        graphs: whether to capture CUDA graphs.
        limit_bytes: device memory that graphs may hold.

    Raises:
        MemoryError: the device has too little memory for the weights.
    """

    def __init__(
        self,
        preset: Preset,
        text: TextEncoderConfig,
        make_video: Callable[[], VideoBranch],
        make_text: Callable[[], TextBranch],
        num_weights: int,
        dtype: torch.dtype,
        device: torch.device,
        graphs: bool,
        limit_bytes: int,
    ) -> None:
        self.dtype = dtype
        self.runner = GraphRunner(device, graphs, limit_bytes, self._described)
        self._preset, self._plan, self._text_config, self._num_weights = preset, plan_for(preset), text, num_weights
        self._programs: dict[str, Program] = {
            "video": self._video_program,
            "features": self._features_program,
            "text": self._text_program,
            "ground": self._ground_program,
            "score": self._score_program,
            "moments": self._moments_program,
        }
        with self.runner.running():
            self.video, self._text = make_video(), make_text()
            self.runner.on_release.append(self.video.conv.release)
            self._cells = torch.from_numpy(self._plan.cells).to(device)
            self._side = own_stream(device) if device.type == "cuda" else None

    def run(self, name: str, inputs: Sequence[Tensor | Input], top_k: int = 0) -> Any:
        """Run a program. Call this within `runner.running`.

        Args:
            name: the program's name.
            inputs: its inputs, on the device or in pinned memory.
            top_k: moments per pair, for programs that return a selection.

        Returns:
            The program's outputs on the device; the caller owns them.
        """
        given = [one if isinstance(one, Input) else Input(one) for one in inputs]
        return self.runner.run(name, self._programs[name], given, (top_k,) if top_k else ())

    def pair_scores(
        self, video: Sequence[Tensor], text: Sequence[Tensor], videos: Tensor, sentences: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contrastive, iou and fused scores of pairs, float32 [Q, P] each (`moment_ops.pair_scores`)."""
        power, product = self._preset.score_power, self._preset.score_fusion == "product"
        scores: tuple[Tensor, Tensor, Tensor]
        scores = moment_ops.pair_scores(*video, *text, videos, sentences, power, product)
        return scores

    def _video_program(self, pre_clips: Tensor) -> tuple[Tensor, ...]:
        return self.video.encode(pre_clips)

    def _features_program(self, rows: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        preset = self._preset
        pooled = video_ops.feature_pool(rows, starts, ends, list(preset.feature_streams), self.dtype)
        return self.video.encode(pooled.view(-1, preset.num_pre_clips, preset.input_size))

    def _text_program(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        branches = self._text(ids, lengths)
        return tuple(F.normalize(branch.float(), dim=-1).to(self.dtype) for branch in branches)

    def _ground_program(
        self,
        rows: Tensor,
        starts: Tensor,
        ends: Tensor,
        ids: Tensor,
        lengths: Tensor,
        videos: Tensor,
        sentences: Tensor,
        durations: Tensor,
        top_k: int,
    ) -> tuple[Tensor, ...]:
        if self._side is None:
            text = self._text_program(ids, lengths)
            video = self._features_program(rows, starts, ends)
        else:
            main = torch.cuda.current_stream(rows.device)
            self._side.wait_stream(main)
            with torch.cuda.stream(self._side):
                text = self._text_program(ids, lengths)
            video = self._features_program(rows, starts, ends)
            main.wait_stream(self._side)
            for branch in text:
                branch.record_stream(main)
        return self._score_program(video[0], video[1], text[0], text[1], videos, sentences, durations, top_k)

    def _score_program(
        self,
        video_contrastive: Tensor,
        video_iou: Tensor,
        text_contrastive: Tensor,
        text_iou: Tensor,
        videos: Tensor,
        sentences: Tensor,
        durations: Tensor,
        top_k: int,
    ) -> tuple[Tensor, ...]:
        preset = self._preset
        fused = self.pair_scores((video_contrastive, video_iou), (text_contrastive, text_iou), videos, sentences)[2]
        found = moment_ops.pair_top_moments(fused, self._cells, durations, top_k, preset.num_clips, preset.nms_iou)
        return (*found, fused.isfinite().all(1))

    def _moments_program(
        self,
        video_contrastive: Tensor,
        video_iou: Tensor,
        text_contrastive: Tensor,
        text_iou: Tensor,
        moments: Tensor,
        top_k: int,
    ) -> tuple[Tensor, ...]:
        video = [branch[None].to(self.dtype) for branch in (video_contrastive, video_iou)]
        text = [branch.to(self.dtype) for branch in (text_contrastive, text_iou)]
        sentences = torch.arange(len(text_iou), dtype=torch.int32, device=text_iou.device)
        fused = self.pair_scores(video, text, torch.zeros_like(sentences), sentences)[2]
        chosen = moment_ops.temporal_nms(fused, moments, top_k, self._preset.nms_iou)
        scores = fused.gather(1, chosen.clamp(min=0).long()).masked_fill(chosen < 0, 0)
        return chosen, scores, fused.isfinite().all(1)

    def _described(self, name: str, shapes: Shapes) -> str:
        sizes = {what: shapes[place][dimension] for what, (place, dimension) in _SIZES[name].items()}
        if "pre-clips" in sizes:
            sizes = {"videos": sizes.pop("pre-clips") // self._preset.num_pre_clips, **sizes}
        words = ", ".join(f"{size} {what}" for what, size in sizes.items()) or "the weights"
        return f"the program {name!r} for {words}, which needs about {self._needed_mib(name, sizes):,} MiB"

    def _needed_mib(self, name: str, sizes: dict[str, int]) -> int:
        """Computed peak memory of a program: weights, rows, the map and two layers, the convolution's workspace, the
        feed-forward, scores.
        """
        preset, plan, text, size = self._preset, self._plan, self._text_config, self.dtype.itemsize
        needed = self._num_weights * size if name == "load" else 0
        needed += sizes.get("rows", 0) * preset.input_size * 4
        if name == "score":
            needed += 2 * sizes["videos"] * plan.num_proposals * preset.joint_size * size
        else:
            cells = (preset.num_clips + plan.layers[0].side) ** 2 // 2 + 2 * max(
                layer.side for layer in plan.layers
            ) ** 2
            needed += sizes.get("videos", 0) * cells * max(preset.hidden_size, preset.conv_hidden_size) * size
            needed += self.video.conv.workspace_bytes(sizes["videos"]) if sizes.get("videos") else 0
        needed += sizes.get("sentences", 0) * sizes.get("tokens", 0) * (text.ffn_width + 6 * text.width) * size
        needed += sizes.get("pairs", 0) * plan.num_proposals * 4 * 4  # three scores and a key
        return max(needed // MIB, 1)
