"""Folds BatchNorm into the proposal convolution, for every fast path. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32

_BATCH_NORM_EPS = 1e-5  # of torch.nn.BatchNorm2d


def folded_layers(state: Mapping[str, npt.NDArray[Any]], num_layers: int) -> tuple[list[Float32], list[Float32]]:
    """Fold BatchNorm into the proposal convolution's weights and biases; float64 until one last rounding.

    Args:
        state: arrays under official state-dict keys.
        num_layers: L.

    Returns:
        Per layer float32 [C_out, C_in, k, k], and per layer float32 [C_out].
    """
    weights, biases = [], []
    for number in range(num_layers):
        conv, norm = f"proposal_conv.convs.{number}", f"proposal_conv.bn.{number}"
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"].astype(np.float64) + _BATCH_NORM_EPS)
        weights.append((state[f"{conv}.weight"] * scale[:, None, None, None]).astype(np.float32))
        bias = (state[f"{conv}.bias"] - state[f"{norm}.running_mean"].astype(np.float64)) * scale
        biases.append((bias + state[f"{norm}.bias"]).astype(np.float32))
    return weights, biases
