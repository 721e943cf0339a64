"""Gathering and FFT tiles in one stack: the choice per layer, any order of layers, and the measurements."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.errors import OutOfResources

from mmn_fast.buckets import VIDEO_BUCKETS
from mmn_fast.geometry import cover_with_tiles, plan_for, proposal_plan
from mmn_fast.kernels.gpu.conv import autotune, block_sizes
from mmn_fast.kernels.gpu.conv.autotune import Tuner, candidates, fastest
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig
from mmn_fast.kernels.gpu.conv.costs import (
    ALGORITHMS,
    TILES,
    choose_layers,
    chosen_ms,
    fastest_stack,
    gather_flop,
    not_timed,
    predicted_on,
    product_flop,
    usable_algorithms,
)
from mmn_fast.kernels.gpu.conv.gather_schedule import work_fraction
from mmn_fast.kernels.gpu.conv.mixed import MixedProposalConv, layers_by_algorithm
from mmn_fast.presets import PRESETS
from tests.kernels.conv_cases import ConvCase
from tests.tolerances import check_close

CONFIG = GatherConfig(128, 128, 64, 8, 4, 1)
SMALL = GatherConfig(16, 64, 32, 4, 2, 1)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("names", "precision"),
    [(("gather", "fft12", "gather"), "fp16"), (("fft16", "gather", "fft24"), "fp32")],
    ids=["gather-first", "tiles-first"],
)
def test_any_layer_can_follow_any_other(names: tuple[str, ...], precision: str) -> None:
    case = ConvCase(proposal_plan(3, (2,), 3, 3), (5, 7, 2), precision)
    choices = {1: ["gather"] * 3, 2: names}
    assert layers_by_algorithm(choices) == {
        "gather": {0, 1, 2},
        **{name: {names.index(name)} for name in names if name in TILES},
    }
    conv = MixedProposalConv(case.settings, choices, configs=dict.fromkeys(TILES, lambda _: SMALL))
    assert conv.info() == {
        "proposal_conv": "mixed",
        "proposal_conv_layers": {1: ["gather"] * 3, 2: list(names)},
    }
    assert conv.algorithms_for(3) == names
    scale = case.expected.abs().max()
    out = conv(case.padded(conv))
    check_close(out.cpu().double() / scale, case.expected / scale, "fourier_conv", precision)
    alone = conv(case.padded(conv, case.inputs[:1]))  # one video takes other kernels
    check_close(alone.cpu().double() / scale, case.expected[:, :1] / scale, "fourier_conv", precision, "alone")
    held = sum(tensor.nbytes for tensor in (*conv._maps[2], *conv._filled[2]) if tensor is not None)
    gather, *tiles = (conv._stacks[name] for name in ("gather", *(name for name in names if name in TILES)))
    held += sum(tensor.nbytes for stack in tiles for tensor in stack._prepared[2][1:])  # type: ignore[attr-defined]
    partial = gather._prepared[2].partial  # type: ignore[attr-defined]
    assert conv.workspace_bytes(2) == held + (0 if partial is None else partial.nbytes)
    conv.release()
    assert not any((conv._maps, *(stack._prepared for stack in (gather, *tiles))))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("tiles", "products"), [("fft12", 284), ("fft16", 508), ("fft24", 1148)])
@pytest.mark.parametrize("name", ["charades-sta", "activitynet-captions", "tacos"])
def test_the_plan_counts_what_the_kernels_execute(name: str, tiles: str, products: int) -> None:
    plan, width = plan_for(PRESETS[name]), 512
    numbers = range(len(plan.layers))
    gathered = sum(gather_flop(plan, number, width, width, 8, CONFIG) for number in numbers)
    assert gathered == pytest.approx(2 * width**2 * 8 * plan.dense_taps * work_fraction(plan, 8, 128))
    m = TILES[tiles] + 1 - plan.kernel
    rows = [8 * len(cover_with_tiles(plan, number, m).outputs) for number in numbers]
    multiplied = sum(product_flop(plan, number, width, width, 8, CONFIG, tiles) for number in numbers)
    assert multiplied == sum(-(-one // 128) * 128 for one in rows) * products * 2 * width**2


def test_predictions_equal_those_in_the_notes() -> None:
    """benchmarks/NOTES.md predicts gathering for one Charades-STA video, and large FFT tiles for large maps."""
    letters = {"gather": "g", "fft12": "a", "fft16": "b", "fft24": "c"}
    chosen, milliseconds = {}, {}
    for name in ("charades-sta", "activitynet-captions", "tacos"):
        plan = plan_for(PRESETS[name])
        for videos in (1, 8):
            times = predicted_on((9, 0), plan, [512] * (len(plan.layers) + 1), videos)
            layers = choose_layers(times)
            chosen[name, videos] = "".join(letters[algorithm] for algorithm in layers)
            milliseconds[name, videos] = round(chosen_ms(times, layers), 2), round(sum(times["fft16"]), 2)
            assert chosen_ms(times, layers) <= min(sum(one) for one in times.values())
    assert chosen == {
        ("charades-sta", 1): "gggggggg",
        ("charades-sta", 8): "aaaaaaaa",
        ("activitynet-captions", 1): "bbbb",
        ("activitynet-captions", 8): "cccc",
        ("tacos", 1): "bbbbbbbb",
        ("tacos", 8): "cbbcbbcb",
    }
    assert milliseconds["tacos", 8] == (3.67, 3.8)
    assert milliseconds["activitynet-captions", 8] == (0.97, 1.39)
    assert milliseconds["charades-sta", 8] == (0.43, 0.67)


def test_a_kernel_that_an_algorithm_does_not_take_is_not_planned_for_it() -> None:
    assert usable_algorithms(9) == ("gather", "fft12", "fft16", "fft24")
    assert usable_algorithms(10) == ("fft12", "fft16", "fft24")
    assert usable_algorithms(13) == ("fft16", "fft24")
    assert usable_algorithms(9, spectra=False) == ("gather",)
    assert set(predicted_on((9, 0), proposal_plan(3, (2,), 17, 1), [8, 8], 1)) == {"fft24"}


def test_equal_times_go_to_gathering_and_what_was_not_timed_is_not_chosen() -> None:
    times: dict[str, list[float]] = {"crop": [1], "gather": [1, 3], "fft16": [1, 2], "fft24": [2, 2]}
    assert choose_layers(times) == ("gather", "fft16")
    assert choose_layers({"crop": [1], "gather": [1, 3]}) == ("gather", "gather")
    assert choose_layers(times, ("gather",)) == ("gather", "gather")
    assert choose_layers(times, TILES) == ("fft16", "fft16")


def test_candidates_fit_shared_memory_and_the_width() -> None:
    for algorithm in ("gather", "fft16"):
        for limit in (227, 163, 99):
            found = candidates(algorithm, limit * 1024, 512)
            assert len(found) == len(set(found)) >= 3
            operands = 1 if algorithm == "gather" else 2
            assert all(operands * config.shared_bytes() <= limit * 1024 for config in found)
    assert len(candidates("gather", 227 * 1024, 512)) == 8
    assert all(config.block_cols == 128 for config in candidates("gather", 227 * 1024, 128))
    assert {config.block_k for config in candidates("gather", 227 * 1024, 512, "fp32")} == {16}


def test_the_fastest_wins_and_what_does_not_fit_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    every = [GatherConfig(rows, 128, 64, 8, 4, 1) for rows in (32, 64, 128, 256)]
    times = {32: 3.0, 64: 2.0, 128: 2.0}

    def time_ms(config: GatherConfig) -> float:
        if config.block_rows == 256:
            raise OutOfResources(300, 227, "shared memory")
        return times[config.block_rows]

    with caplog.at_level(logging.INFO):
        assert fastest(every, time_ms) == every[1]
    assert "block_rows=256" in caplog.text
    with pytest.raises(ValueError, match="configs: expected one that fits the device, got none"):
        fastest(every[3:], time_ms)


class _Clock:
    """A clock by which the n-th timed run takes 100 - n ms."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def whole_ms(self, queue: Callable[[], Any]) -> float:
        self.asked.append(queue)
        return 100.0 - len(self.asked)

    def layers_ms(self, runs: Sequence[Callable[[], Any]], whole_ms: float) -> list[float]:
        """The first layer takes as long as all others together."""
        self.asked += runs
        return [whole_ms / 2, *[whole_ms / 2 / (len(runs) - 1)] * (len(runs) - 1)] if len(runs) > 1 else [whole_ms]


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], tuple[Tuner, list[Any]]]:
    """A function that makes tuners for a device of sm_90 with a `_Clock`."""
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune, "capability_of", lambda _: (9, 0))

    def make(layers: int = 2, width: int = 70) -> tuple[Tuner, list[Any]]:
        case = ConvCase(proposal_plan(3, (2,), 3, layers), (5, width, 1), "fp32")  # the interpreter is slow in fp16
        clock = _Clock()
        return Tuner(case.settings, clock=clock, shared_bytes=227 * 1024), clock.asked

    return make


def test_block_sizes_are_measured_once_and_kept(tuner: Callable[[], tuple[Tuner, list[Any]]]) -> None:
    first, asked = tuner()
    plan = proposal_plan(3, (2,), 3, 2)
    for algorithm, splits in (("gather", 8), ("fft24", 1)):
        before = len(asked)
        known = block_sizes.chosen_config(algorithm, (9, 0), plan, 70, 2, "fp32")
        every = list(dict.fromkeys([known, *candidates(algorithm, 227 * 1024, 70, "fp32")]))
        found = first.config_for(algorithm, 2)
        assert len(asked) == before + len(every)
        assert asked[-1].func.config_for(2) == found == every[-1]  # the last one was the fastest
        assert found.max_splits == splits
        assert block_sizes.chosen_config(algorithm, (9, 0), plan, 70, 3, "fp32") == found  # the same bucket of videos
        assert block_sizes.chosen_config(algorithm, (9, 0), plan, 70, 1, "fp32") == known
        assert block_sizes.chosen_config(algorithm, (9, 0), plan, 70, 2, "fp16").block_k == 64  # not measured
        again, untouched = tuner()
        assert again.config_for(algorithm, 3) == found
        assert not untouched


@pytest.mark.slow
def test_layers_are_timed_once_and_kept(
    tuner: Callable[..., tuple[Tuner, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tuner, "config_for", lambda *_: GatherConfig(64, 16, 16, 4, 2, 1))
    first, asked = tuner(1, 7)
    tiles = {"fft12": [97.0], "fft16": [95.0], "fft24": [93.0]}
    assert first.times(1) == {"gather": [99.0], **tiles, "crop": [91.0], "mixed": [93.0]}
    gather, _, tiles_of_12, *_, crop = asked
    for queue in (gather, tiles_of_12, crop):
        queue()  # timed work really runs; larger tiles are left out, because they are slow here
    first, _ = tuner(2, 7)
    times = first.times(1)
    # Two layers are timed after each stack. Tiles of 24 are the fastest for both, so "mixed" equals them.
    tiles = {"fft12": [48.0, 48.0], "fft16": [46.5, 46.5], "fft24": [45.0, 45.0]}
    assert times == {"gather": [49.5, 49.5], **tiles, "crop": [87.0], "mixed": [90.0]}
    plan = proposal_plan(3, (2,), 3, 2)
    assert block_sizes.measured_times("sm_90", plan, 7, 8, "fp32", bool) == times
    assert block_sizes.measured_times("sm_90", plan, 7, 8, "fp16", bool) is None
    assert block_sizes.measured_times("sm_80", plan, 7, 8, "fp32", bool) is None
    again, untouched = tuner(2, 7)
    assert again.times(1) == times
    assert not untouched


def test_times_kept_in_part_are_measured_again(
    tuner: Callable[..., tuple[Tuner, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tuner, "config_for", lambda *_: GatherConfig(64, 16, 16, 4, 2, 1))
    key = block_sizes.times_key(proposal_plan(3, (2,), 3, 1), 7, 1, "fp32")
    block_sizes.keep("sm_90", key, {"crop": [9.0], "gather": [1.0]})
    first, asked = tuner(1, 7)
    times = first.times(1)
    assert not not_timed(times, 3, "fp32")
    assert asked


def test_layers_that_differ_are_mixed_and_timed_as_a_whole(
    tuner: Callable[..., tuple[Tuner, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tuner, "config_for", lambda *_: GatherConfig(64, 16, 16, 4, 2, 1))
    shares = iter([(0.1, 0.9), (0.9, 0.1), (0.9, 0.1), (0.9, 0.1)])
    monkeypatch.setattr(_Clock, "layers_ms", lambda _, runs, ms: [ms * share for share in next(shares)])
    first, asked = tuner(2, 7)
    times = first.times(1)
    assert choose_layers(times) == ("gather", "fft24")
    assert times["mixed"] == [94.0]  # its own time, not 9.9 + 9.6 of layers in other stacks
    assert asked[-1].func.choices == {1: ("gather", "fft24")}


@pytest.mark.parametrize("missing", ["crop", "gather", "fft12", "fft16", "fft24", "mixed"])
def test_each_way_that_was_not_timed_is_named(missing: str) -> None:
    ways = ["crop", "gather", "fft12", "fft16", "fft24", "mixed"]
    times = {name: [1.0] for name in ways}
    assert not_timed(times, 5, "fp16") == ()
    assert not_timed({name: one for name, one in times.items() if name != missing}, 5, "fp16") == (missing,)
    assert not_timed({}, 5, "bf16") == ("crop", "gather", "mixed")
    assert not_timed({}, 10, "fp16") == ("crop", "fft12", "fft16", "fft24", "mixed")


def test_the_fastest_whole_stack_is_taken_not_the_least_sum_of_layers() -> None:
    times = {"crop": [9.0], "gather": [1.0, 3.0], "fft16": [3.0, 0.5], "mixed": [1.6]}
    assert fastest_stack(times, ALGORITHMS) == (("gather", "fft16"), 1.6)
    times["mixed"] = [3.6]  # more than 1.0 + 0.5, as if the layers slowed each other down
    assert fastest_stack(times, ALGORITHMS) == (("fft16", "fft16"), 3.5)
    assert fastest_stack(times, ("gather",)) == (("gather", "gather"), 4.0)
    assert fastest_stack({"crop": [9.0], "gather": [1.0, 3.0], "fft16": [1.0, 3.0]}, ALGORITHMS) == (
        ("gather", "gather"),
        4.0,
    )


def test_work_beyond_the_memory_is_not_timed(
    tuner: Callable[[], tuple[Tuner, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = tuner()
    asked = []

    def times(_: Tuner, videos: int) -> dict[str, list[float]]:
        asked.append(videos)
        if videos >= 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {}

    monkeypatch.setattr(Tuner, "times", times)
    first.measure(VIDEO_BUCKETS)
    assert asked == [1, 2, 4, 8]


def test_maps_for_timing_are_not_zero(tuner: Callable[[], tuple[Tuner, list[Any]]]) -> None:
    """A matrix unit is faster on zeros."""
    first, asked = tuner()
    first.config_for("fft16", 1)
    map_padded = asked[0].args[0]
    assert np.count_nonzero(map_padded.cpu().numpy()) > 0.99 * map_padded.numel()
