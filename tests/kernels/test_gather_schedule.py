"""The gathering convolution's work list, simulated: every needed cell x tap runs once, few others do."""

from __future__ import annotations

import numpy as np
import pytest

from mmn_fast.geometry import ProposalPlan, plan_for, proposal_plan
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig, choose_splits, video_bucket
from mmn_fast.kernels.gpu.conv.gather_schedule import (
    ITEM_FIRST,
    ITEM_SPLIT,
    ITEM_TAPS,
    ITEM_WORDS,
    WORD_BITS,
    LayerSchedule,
    schedule_layer,
    side_of_input,
    work_fraction,
)
from mmn_fast.presets import PRESETS

# (preset, B) -> fraction of the dense products in tiles of 128 rows. Predicted before the order of cells was chosen per
# layer: 0.553, 0.438 and 0.420 for one video, 0.417, 0.382 and 0.403 for eight.
FRACTIONS = {
    ("charades-sta", 1): (0.5437, 0.553),
    ("activitynet-captions", 1): (0.4317, 0.438),
    ("tacos", 1): (0.4196, 0.420),
    ("charades-sta", 8): (0.4167, 0.417),
    ("activitynet-captions", 8): (0.3816, 0.382),
    ("tacos", 8): (0.4027, 0.403),
}
ODD_PLANS = {
    "one-cell": proposal_plan(1, (), 1, 1),
    "one-cell-k5": proposal_plan(1, (), 5, 2),
    "k4-even": proposal_plan(9, (4, 2), 4, 2),
    "k9": proposal_plan(9, (3, 2), 9, 4),
}
PLANS = {**{name: plan_for(preset) for name, preset in PRESETS.items()}, **ODD_PLANS}


def taps_of(words: np.ndarray) -> np.ndarray:
    """List tap numbers in a kernel's order: lowest bit of the lowest word first."""
    bits = (words[:, None] >> np.arange(WORD_BITS)) & 1
    return np.flatnonzero(bits.ravel())


def simulate(plan: ProposalPlan, number: int, schedule: LayerSchedule, videos: int) -> tuple[np.ndarray, int]:
    """Count how often each (cell in work-list order, video, tap) is multiplied, and all products, padding rows too."""
    done = np.zeros((schedule.rows, plan.kernel**2), np.int32)
    executed = 0
    for item in schedule.items:
        taps = taps_of(item[ITEM_WORDS:])
        assert len(taps) == item[ITEM_TAPS]
        rows = np.arange(item[ITEM_FIRST], min(item[ITEM_FIRST] + schedule.block_rows, schedule.rows))
        done[np.ix_(rows, taps)] += 1
        executed += len(taps) * schedule.block_rows
    return done.reshape(-1, videos, plan.kernel**2), executed


@pytest.mark.slow
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("videos", "block_rows"), [(1, 128), (3, 64), (8, 128)])
@pytest.mark.parametrize("name", PLANS)
def test_every_needed_tap_is_executed_once(name: str, videos: int, block_rows: int, splits: int) -> None:
    plan = PLANS[name]
    for number, layer in enumerate(plan.layers):
        schedule = schedule_layer(plan, number, videos, block_rows, splits)
        done, executed = simulate(plan, number, schedule, videos)
        assert executed == schedule.executed_taps
        side_in, k = schedule.side_in, plan.kernel
        y, x = np.divmod(schedule.cells_in, side_in)
        order = np.lexsort((x, y))  # back to the plan's row-major order
        assert np.array_equal(np.column_stack([y, x])[order], layer.cells)
        assert np.array_equal(schedule.cell_weights[order], layer.cell_weights)
        assert done.max(initial=0) <= 1
        assert done[order][np.broadcast_to(layer.taps[:, None], done.shape)].all()
        last = number + 1 == len(plan.layers)
        expected = np.arange(len(layer.cells)) if last else layer.cells @ [layer.side, 1]
        assert np.array_equal(schedule.cells_out[order], expected)
        # A tap that a row does not need must read a cell inside the map that no layer writes, because it is zero.
        written = plan.layers[number - 1].cells if number else plan.inputs + (side_in - plan.num_clips) // 2
        is_written = np.zeros(side_in**2, bool)
        is_written[written @ [side_in, 1]] = True
        tap_shift = np.arange(k * k) // k * side_in + np.arange(k * k) % k
        read = schedule.cells_in[order][:, None] + tap_shift
        assert read.max() < side_in**2
        assert np.array_equal(is_written[read], layer.taps)


@pytest.mark.parametrize("name", PLANS)
def test_items_are_sorted_and_every_share_is_there(name: str) -> None:
    plan = PLANS[name]
    for number in range(len(plan.layers)):
        items = schedule_layer(plan, number, 2, 64, 4).items
        assert (np.diff(items[:, ITEM_TAPS]) <= 0).all()
        shares = {(int(first), int(split)) for first, split in items[:, [ITEM_FIRST, ITEM_SPLIT]]}
        rows = 2 * len(plan.layers[number].cells)
        assert shares == {(first, split) for first in range(0, rows, 64) for split in range(4)}
        assert len(items) == len(shares)


@pytest.mark.parametrize(("name", "videos"), FRACTIONS)
def test_work_fraction_is_as_predicted(name: str, videos: int) -> None:
    fraction, predicted = work_fraction(plan_for(PRESETS[name]), videos, 128), FRACTIONS[name, videos][1]
    assert round(fraction, 4) == FRACTIONS[name, videos][0]
    assert predicted - 0.01 <= round(fraction, 3) <= predicted


def test_maps_stay_inside_the_padded_one() -> None:
    for plan in PLANS.values():
        assert side_of_input(plan, 0) == plan.num_clips + (plan.kernel - 1) * len(plan.layers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((plan_for(PRESETS["shapes"]), 0, 0, 128), "videos: expected at least 1, got 0"),
        ((plan_for(PRESETS["shapes"]), 0, 1, 0), "block_rows: expected at least 1, got 0"),
        ((plan_for(PRESETS["shapes"]), 0, 1, 128, 0), "splits: expected at least 1, got 0"),
        ((proposal_plan(1, (), 11, 1), 0, 1, 128), "plan: expected a kernel of at most 81 taps, got 121"),
    ],
)
def test_schedule_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_layer(*arguments)


def test_splits_fill_the_device_and_no_more() -> None:
    assert [choose_splits(work, 132, 8) for work in (1, 16, 33, 66, 132, 500)] == [8, 8, 4, 2, 1, 1]
    assert choose_splits(3, 132, 1) == 1
    assert [video_bucket(videos) for videos in (1, 3, 8, 47, 500)] == [1, 2, 8, 32, 48]


@pytest.mark.parametrize("bad", [0, -1, 48, 64.0, True, "64"])
def test_config_refuses(bad: object) -> None:
    with pytest.raises(ValueError, match="block_rows: expected a power of two"):
        GatherConfig(bad, 128, 64, 8, 4, 1)  # type: ignore[arg-type]
