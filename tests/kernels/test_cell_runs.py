"""Runs of cells: they compute every needed cell and tap once, from the right input, in few tiles."""

from __future__ import annotations

import numpy as np
import pytest

from mmn_fast.geometry import plan_for, proposal_plan
from mmn_fast.kernels.cpu.cell_runs import RUN_CELLS, cell_runs
from mmn_fast.presets import PRESETS

PLANS = {
    "one-cell": proposal_plan(1, (), 1, 1),
    "k4-even": proposal_plan(9, (4, 2), 4, 2),
    "k5-sparse": proposal_plan(17, (5, 4), 5, 1),
    "k9": proposal_plan(17, (3, 2), 9, 4),
    **{name: plan_for(preset) for name, preset in PRESETS.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_runs_read_what_the_plan_says(name: str) -> None:
    plan = PLANS[name]
    for number, layer in enumerate(plan.layers):
        runs = cell_runs(plan, number)
        tile, lane = np.nonzero(runs.outputs >= 0)
        cells = runs.outputs[tile, lane]
        np.testing.assert_array_equal(np.sort(cells), np.arange(len(layer.cells)))
        slots = (runs.starts[tile] + lane * runs.stride)[:, None] + runs.tap_offsets
        read = np.where(runs.tile_taps[tile], runs.slots[slots], -1)
        # A tile skips only taps that none of its cells needs.
        neighbours = layer.neighbours[cells]
        np.testing.assert_array_equal(read[neighbours >= 0], neighbours[neighbours >= 0])
        # All other slots that a tile reads are empty, that is zero.
        assert (runs.slots[slots][neighbours < 0] == -1).all()
        assert runs.products >= layer.taps.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_tiles_are_packed_from_the_front_and_paired(name: str) -> None:
    plan = PLANS[name]
    for number in range(len(plan.layers)):
        outputs = cell_runs(plan, number).outputs
        counts = (outputs >= 0).sum(1)
        assert len(outputs) % 2 == 0
        assert ((outputs >= 0) == (np.arange(RUN_CELLS) < counts[:, None])).all()
        assert (counts[:-1] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("charades-sta", 1.13), ("activitynet-captions", 1.12), ("tacos", 1.06)])
def test_few_products_are_wasted(name: str, most: float) -> None:
    plan = PLANS[name]
    work = sum(cell_runs(plan, number).products for number in range(len(plan.layers)))
    assert work / plan.exact_taps < most
