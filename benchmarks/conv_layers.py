"""A preset's proposal convolution for the benchmarks of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from mmn_fast.kernels.gpu.conv.crop import ConvSettings


@dataclass(frozen=True, eq=False)
class Layers(ConvSettings):
    """Settings of a preset's proposal convolution, with the preset's name."""

    preset: str

    def per_tap(self) -> float:
        """FLOP of one cell x tap product, the mean over the layers."""
        return 2.0 * float(np.mean([a * b for a, b in pairwise(self.widths)]))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, divided by the largest expected value."""
    return float((found.float() - expected).abs().max() / expected.abs().max())
