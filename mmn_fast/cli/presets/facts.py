"""What a preset means: its proposals, its work, its weights, and its moments in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmn_fast.geometry import plan_for, pool_steps, proposal_diagonals
from mmn_fast.presets import Preset


@dataclass(frozen=True)
class PresetFacts:
    """Facts that follow from a preset's values.

    Attributes:
        num_proposals: P.
        num_spans: spans of whole clips that there are, N (N + 1) / 2; the map has a cell for P of them.
        gflop: work per video, 10^9 operations, from pre-clips to embeddings; convolutions count what is computed.
        gflop_dense: the same with convolutions over whole maps.
        weights_mib: weights of the video branch in fp32, MiB; the text encoder's are not in it.
        embeddings_mib: embeddings of one video, MiB.
        reach: cells of the map on each side that a proposal's embedding depends on, (k - 1) L / 2.
        shortest_clips: clips of the shortest proposal.
        longest_clips: clips of the longest proposal.
    """

    num_proposals: int
    num_spans: int
    gflop: float
    gflop_dense: float
    weights_mib: float
    embeddings_mib: float
    reach: int
    shortest_clips: int
    longest_clips: int

    @classmethod
    def of(cls, preset: Preset) -> PresetFacts:
        """Compute the facts."""
        plan, N = plan_for(preset), preset.num_clips
        rest = _flop_beside_the_convolution(preset, plan.num_proposals)
        widths = [preset.hidden_size] + [preset.conv_hidden_size] * preset.conv_layers
        layers = list(zip(plan.layers, widths[:-1], widths[1:], strict=True))
        computed = sum(2 * int(layer.taps.sum()) * w_in * w_out for layer, w_in, w_out in layers)
        dense = sum(2 * layer.side**2 * preset.conv_kernel**2 * w_in * w_out for layer, w_in, w_out in layers)
        lengths = plan.cells[:, 1] - plan.cells[:, 0] + 1
        return cls(
            num_proposals=plan.num_proposals,
            num_spans=N * (N + 1) // 2,
            gflop=(computed + rest) / 1e9,
            gflop_dense=(dense + rest) / 1e9,
            weights_mib=4 * preset.num_weights / 2**20,
            embeddings_mib=8 * plan.num_proposals * preset.joint_size / 2**20,
            reach=(preset.conv_kernel - 1) * preset.conv_layers // 2,
            shortest_clips=int(lengths.min()),
            longest_clips=int(lengths.max()),
        )

    def moments(self, preset: Preset, duration_s: float) -> dict[str, float]:
        """Seconds of a clip, of the shortest and of the longest moment of a video."""
        clip_s = duration_s / preset.num_clips
        return {
            "duration_s": duration_s,
            "clip_s": clip_s,
            "shortest_s": self.shortest_clips * clip_s,
            "longest_s": self.longest_clips * clip_s,
            "row_s": duration_s / preset.num_pre_clips,
        }

    def to_dict(self) -> dict[str, Any]:
        """All facts as plain JSON types."""
        return dict(vars(self))


def _flop_beside_the_convolution(preset: Preset, num_proposals: int) -> int:
    """Work of clip_pool's convolution, of learned pooling and of both heads."""
    clips = 2 * preset.num_pre_clips * preset.input_size * preset.hidden_size
    heads = 2 * num_proposals * preset.conv_hidden_size * 2 * preset.joint_size
    pooling = 0
    if preset.pooling == "conv":
        steps = zip(
            pool_steps(preset.pooling_counts),
            proposal_diagonals(preset.num_clips, preset.pooling_counts),
            strict=True,
        )
        pooling = sum(2 * kernel * preset.hidden_size**2 * len(rows) for (kernel, _), (rows, _) in steps)
    return clips + heads + pooling
