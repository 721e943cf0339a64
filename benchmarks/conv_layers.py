"""A preset's proposal convolution for the benchmarks of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mmn_fast.arrays import Float32
from mmn_fast.geometry import ProposalPlan


@dataclass
class Layers:
    """A preset's layers."""

    preset: str
    plan: ProposalPlan
    weights: list[Float32]
    biases: list[Float32]
    dtype: torch.dtype
    device: torch.device

    @property
    def arguments(self) -> tuple:
        """What the constructors of proposal convolutions take."""
        return self.weights, self.biases, self.plan, self.dtype, self.device

    @property
    def widths(self) -> list[int]:
        """Channels of the map and of every layer."""
        return [self.weights[0].shape[1], *map(len, self.biases)]

    def per_tap(self) -> float:
        """FLOP of a cell x tap product; the mean of layers of different widths."""
        return 2.0 * float(np.mean([a * b for a, b in pairwise(self.widths)]))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, of the largest expected value."""
    return float((found.float() - expected).abs().max() / expected.abs().max())
