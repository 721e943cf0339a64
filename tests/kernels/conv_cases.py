"""Random layers for the tests of convolutions in Triton: weights, a padded map, and the reference's output."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mmn_fast.geometry import ProposalPlan
from mmn_fast.kernels import reference
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.stack import ConvStack

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""The device of all tests in a process, because one process of Triton either compiles or interprets."""
on_device: Callable[[Any], Any] = pytest.mark.gpu if DEVICE.type == "cuda" else lambda test: test
"""Marks a test as "gpu" if there is a device, because the test then uses it."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class ConvCase:
    """Weights scaled so that values keep their size from layer to layer, inputs rounded to the dtype, float64 output.

    Args:
        plan: geometry.
        sizes: C_0, C, B.
        precision: a key of `DTYPES`.
        rounded: compute the expected output from weights that are rounded to the dtype.
    """

    def __init__(self, plan: ProposalPlan, sizes: tuple[int, int, int], precision: str, rounded: bool = True) -> None:
        C_0, C, B = sizes
        self.plan, k, self.dtype = plan, plan.kernel, DTYPES[precision]
        rng = np.random.default_rng(plan.num_clips + C)
        widths = [C_0, *[C] * len(plan.layers)]
        self.weights = [
            (rng.standard_normal((c_out, c_in, k, k)) * np.sqrt(8 / c_in)).astype(np.float32)
            for c_in, c_out in pairwise(widths)
        ]
        self.biases = [rng.standard_normal(C).astype(np.float32) / 8 for _ in plan.layers]
        self.inputs = torch.from_numpy(np.abs(rng.standard_normal((B, len(plan.inputs), C_0)))).to(self.dtype)
        weights = [torch.from_numpy(weight).to(self.dtype if rounded else None).double() for weight in self.weights]
        biases = [torch.from_numpy(bias).double() for bias in self.biases]
        self.expected = reference.proposal_conv_packed(self.inputs.double(), weights, biases, plan).transpose(0, 1)

    @property
    def settings(self) -> ConvSettings:
        """The layers on `DEVICE`."""
        return ConvSettings(self.weights, self.biases, self.plan, self.dtype, DEVICE)

    def padded(self, conv: ConvStack, inputs: torch.Tensor | None = None, outside: float = 0.0) -> torch.Tensor:
        """Put the inputs (or others) on their map; `outside` fills the cells that the plan does not need."""
        return padded_map(conv, self.inputs if inputs is None else inputs, outside)


def padded_map(conv: ConvStack, inputs: torch.Tensor, outside: float = 0.0) -> torch.Tensor:
    """Put inputs [B, R_0, C_0] on a map in the form that a convolution takes."""
    layout = conv.layout
    out = torch.full((layout.side**2, len(inputs), layout.channels), outside, dtype=inputs.dtype)
    rows = (conv.plan.inputs + layout.border) @ [layout.side, 1]
    out[torch.from_numpy(rows)] = inputs.transpose(0, 1)
    return out.to(DEVICE)
