"""The geometry of the sparse map; the proposal plan leaves out no cell and no tap that is needed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks.golden import cases
from mmn_fast.geometry import cells_to_moments, plan_for, proposal_cells, proposal_mask, proposal_plan, temporal_iou
from mmn_fast.kernels import reference
from mmn_fast.presets import PRESETS
from tests.tolerances import check_close

ODD_SIZES = [
    # num_clips, pooling_counts, kernel, layers
    (1, (), 3, 2),
    (2, (1,), 1, 3),
    (5, (2,), 3, 1),
    (7, (3,), 4, 2),
    (12, (3, 2), 5, 2),
    (17, (4, 2, 1), 3, 3),
    (16, (15,), 7, 4),
    (24, (7, 4), 9, 2),
]


@pytest.mark.parametrize("name", [*cases.SMALL, *cases.FULL])
def test_cells_are_the_official_ones_in_row_major_order(name: str) -> None:
    case = cases.load(name)
    np.testing.assert_array_equal(plan_for(case.preset).cells, case.arrays["valid"])


@pytest.mark.parametrize(
    ("name", "proposals", "cell_work", "exact_work"),
    [
        ("charades-sta", 136, 0.488, 0.390),
        ("activitynet-captions", 1104, 0.505, 0.365),
        ("tacos", 2548, 0.462, 0.400),
        ("hc-stvg", 136, 0.570, 0.373),
    ],
)
def test_plan_needs_the_known_fraction_of_dense_work(
    name: str, proposals: int, cell_work: float, exact_work: float
) -> None:
    plan = plan_for(PRESETS[name])
    assert plan.num_proposals == proposals
    assert round(plan.cell_taps / plan.dense_taps, 3) == cell_work
    assert round(plan.exact_taps / plan.dense_taps, 3) == exact_work


def test_plan_of_tacos_has_the_known_rows_per_layer() -> None:
    rows = [len(layer.cells) for layer in plan_for(PRESETS["tacos"]).layers]
    assert rows == [8012, 10368, 11472, 12608, 11472, 10368, 8012, 2548]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_plan_gives_the_dense_result_at_every_valid_cell(preset) -> None:
    _check_plan(preset.num_clips, preset.pooling_counts, preset.conv_kernel, preset.conv_layers)


@pytest.mark.parametrize(("num_clips", "counts", "kernel", "layers"), ODD_SIZES)
def test_plan_gives_the_dense_result_in_odd_sizes(num_clips: int, counts: tuple, kernel: int, layers: int) -> None:
    _check_plan(num_clips, counts, kernel, layers)


def _check_plan(num_clips: int, counts: tuple[int, ...], kernel: int, num_layers: int) -> None:
    """Compare packed and dense computation in float64; every input that the plan does not read is NaN in the packed."""
    plan = proposal_plan(num_clips, counts, kernel, num_layers)
    generator = torch.Generator().manual_seed(num_clips * 100 + kernel)
    widths = [3, *[2 + layer % 2 for layer in range(num_layers)]]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [draw(o, i, kernel, kernel) / kernel for i, o in pairwise(widths)]
    biases = [draw(width) for width in widths[1:]]
    clips = draw(2, widths[0], num_clips)
    map2d = reference.sparse_max_pool(clips, counts)

    dense = map2d
    for number, layer in enumerate(plan.layers):
        padding = (kernel - 1) * num_layers // 2 if number == 0 else 0
        cell_weights = torch.from_numpy(layer.weights).double()
        dense = reference.proposal_conv_layer(dense, weights[number], biases[number], cell_weights, padding)
        assert dense.shape[-1] == layer.side
    rows, columns = torch.from_numpy(plan.cells).long().unbind(1)

    inputs = map2d[:, :, plan.inputs[:, 0], plan.inputs[:, 1]].mT
    packed = reference.proposal_conv_packed(inputs, weights, biases, plan)
    check_close(packed, dense[:, :, rows, columns].mT, "proposal_conv_packed", "fp64")


@pytest.mark.parametrize(("num_clips", "counts"), [(1, ()), (5, (2,)), (12, (3, 2)), (128, (15, 8, 8, 8))])
def test_sparse_max_pool_is_the_maximum_over_the_span_and_zero_elsewhere(num_clips: int, counts: tuple) -> None:
    clips = torch.randn(2, 3, num_clips, generator=torch.Generator().manual_seed(0)) - 5
    map2d = reference.sparse_max_pool(clips, counts)
    mask = proposal_mask(num_clips, counts)
    for i, j in proposal_cells(mask):
        assert torch.equal(map2d[:, :, i, j], clips[:, :, i : j + 1].amax(-1))
    assert not map2d[:, :, ~torch.from_numpy(mask)].any()


def test_cells_to_moments_rounds_as_the_official_code_does() -> None:
    cells = plan_for(PRESETS["activitynet-captions"]).cells
    grid = torch.from_numpy(cells).long()
    grid[:, 1] += 1
    for duration_s in (120.5, 0.1, 30.96, 1e6 / 3):
        np.testing.assert_array_equal(cells_to_moments(cells, duration_s, 64), (grid * duration_s / 64).numpy())


def test_temporal_iou_divides_by_the_hull() -> None:
    moments = np.array([[0, 10], [10, 20], [5, 15], [30, 40], [0, 0]], np.float32)
    expected = np.array([1, 0, 5 / 15, 0, 0], np.float32)
    np.testing.assert_array_equal(temporal_iou(moments, np.array([0, 10])), expected)
