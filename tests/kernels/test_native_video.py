"""The video branch in C++ pools the 2D map's cells from the clips, on every instruction set of the host."""

import numpy as np
import pytest

from mmn_fast import _C

N = 11


@pytest.mark.parametrize("isa", _C.available_cpu_isas())
@pytest.mark.parametrize("broken", [[], [0], [6], [3, 10]])
def test_a_moment_that_holds_a_nan_clip_is_nan_and_no_other(broken: list[int], isa: str) -> None:
    """One channel goes through identity layers, so a proposal is its unit vector 1, or NaN."""
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    cells = np.ascontiguousarray(np.argwhere(np.triu(np.ones((N, N)))), np.int32)
    conv = _C.ProposalConv(isa=isa)
    conv.add_direct(
        weight=one[..., None],
        bias=zero,
        neighbours=np.arange(len(cells), dtype=np.int32)[:, None],
        cell_weights=np.ones(len(cells), np.float32),
        cells_in=len(cells),
    )
    encoder = _C.VideoEncoder(
        conv=conv,
        clip_weight=one,
        clip_bias=zero,
        pre_clips=N,
        kernel=1,
        stride=1,
        heads_weight=np.ones((64, 1), np.float32),
        heads_bias=np.zeros(64, np.float32),
        joint=1,
        cells=cells,
    )
    clips = np.arange(1, N + 1, dtype=np.float32).reshape(1, N, 1)
    clips[:, broken] = np.nan
    contrastive, iou = np.zeros((2, 1, len(cells), 1), np.float32)
    encoder.run(pre_clips=clips, contrastive=contrastive, iou=iou, threads=1)
    expected = [np.nan if np.isnan(clips[0, i : j + 1]).any() else 1 for i, j in cells]
    np.testing.assert_array_equal(contrastive[0, :, 0], expected)
    np.testing.assert_array_equal(iou[0, :, 0], expected)
