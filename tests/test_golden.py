"""The golden cases: every backend's results beside the official code's float64 results.

The recorded truths are float64 results of the official implementation, so they hold no machine's float32 rounding. All
tolerances refer to them. Backend torch in float32 has tolerances for its own order of sums, and is no reference for
other backends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from benchmarks.golden import cases
from mmn_fast import _C
from mmn_fast.geometry import cells_to_moments
from mmn_fast.kernels.cpu.conv import has_bf16
from tests.golden.grounded import batch_of, grounded
from tests.tolerances import check_close

Models = Callable[[str], Path]
GOLDEN = [*cases.SMALL, *(pytest.param(name, marks=pytest.mark.full) for name in cases.FULL)]


def check_golden(found: Sequence[Any], name: str, op: str, precision: str) -> None:
    """Compare a case's maps and moments with the official ones; tolerance `op` for scores, `op`_iou for the iou map."""
    case = cases.load(name)
    for ours, video in zip(found, case.videos, strict=True):
        np.testing.assert_array_equal(ours["cells"], case.arrays["valid"])
        what = f"{name} {video.video_id}"
        check_close(ours["contrastive"], video.contrastive, op, precision, what=f"{what} contrastive")
        check_close(ours["iou"], video.iou, f"{op}_iou", precision, what=f"{what} iou")
        check_close(ours["fused"], video.truth, op, precision, what=f"{what} fused")


def check_golden_moments(found: list[dict[str, np.ndarray]], name: str) -> None:
    """The official moments in the official order, but where scores are too close to tell; tube, rows and boxes."""
    case = cases.load(name)
    if case.is_tubes:
        for ours, video in zip(found, case.videos, strict=True):
            query = video.video_id.split(".")[0]
            np.testing.assert_array_equal(ours["answer"][:, 3:], case.arrays[f"{query}.boxes"])
            assert (ours["answer"][:, :3] == case.arrays[f"{query}.tube"]).all()
        return
    for ours, video in zip(found, case.videos, strict=True):
        seconds = cells_to_moments(ours["cells"], video.duration_s, case.preset.num_clips)
        for official, fused, moments in zip(video.moments, video.truth, ours["moments"], strict=False):
            chosen = moments[~np.isnan(moments[:, 0])]
            assert len(chosen) == len(official)
            differs = np.flatnonzero(np.abs(chosen - official).max(1) > 1e-3)
            if not len(differs):
                check_close(chosen, official, "golden_moments")
                continue
            # After the first difference, the two lists may only differ in the order of tied scores.
            theirs, mine = (
                np.flatnonzero(np.abs(seconds - moment[differs[0]]).max(1) < 1e-3) for moment in (official, chosen)
            )
            assert len(theirs) == len(mine) == 1
            check_close(fused[mine[0]], fused[theirs[0]], "score_ties", what=f"{name}, moment {differs[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_torch_in_fp64_is_the_reference(name: str, golden_model: Models) -> None:
    engine = mmn_fast.load(golden_model(name), backend="torch", precision="fp64", device="cpu")
    assert engine.info()["precision"] == "fp64"
    found = grounded(engine, cases.load(name))
    check_golden(found, name, "golden_maps", "fp64")
    check_golden_moments(found, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_torch_in_fp32_is_as_near_as_its_order_of_sums_allows(name: str, golden_model: Models) -> None:
    engine = mmn_fast.load(golden_model(name), backend="torch", precision="fp32", device="cpu")
    check_golden(engine.score_maps(batch_of(cases.load(name))), name, "torch_maps", "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.full)])
@pytest.mark.parametrize("isa", _C.available_cpu_isas())
def test_native_is_near_the_official_scores_with_every_instruction_set_of_this_host(
    isa: str, size: str, golden_model: Models, tmp_path: Path
) -> None:
    """Each set runs in a new process, because a process chooses its kernels once; the process has no PyTorch."""
    names = cases.SMALL if size == "small" else cases.FULL
    command = [sys.executable, "-m", "tests.golden.grounded", str(tmp_path / "found.npz")]
    command += [f"{name}={golden_model(name)}" for name in names]
    environment = os.environ | {"MMN_FAST_CPU_ISA": isa}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as file:
        arrays = dict(file)
    assert arrays["isa"] == isa
    for name in names:
        videos = range(len(cases.load(name).videos))
        keys = ["contrastive", "iou", "fused", "cells", "moments", *["answer"] * cases.load(name).is_tubes]
        found = [{key: arrays[f"{name}.{number}.{key}"] for key in keys} for number in videos]
        check_golden(found, name, "golden_maps", "fp32")
        check_golden_moments(found, name)


@pytest.mark.skipif(not has_bf16(), reason="this instruction set does not multiply bf16")
@pytest.mark.parametrize("name", GOLDEN)
def test_native_bf16_is_at_most_twice_as_far_off_as_rounded_operands(name: str, golden_model: Models) -> None:
    case, errors = cases.load(name), {}
    for backend in ("torch", "native"):
        maps = mmn_fast.load(golden_model(name), backend=backend, precision="bf16").score_maps(batch_of(case))
        errors[backend] = max(np.abs(m.fused - v.truth).max() for m, v in zip(maps, case.videos, strict=True))
    assert errors["native"] <= 2 * errors["torch"], errors


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_torch_in_low_precision_stays_near_the_official_scores(precision: str, golden_model: Models) -> None:
    for name in ("charades_small", "activitynet_small"):
        case = cases.load(name)
        engine = mmn_fast.load(golden_model(name), backend="torch", precision=precision)
        assert engine.info()["precision"] == precision
        for video, maps in zip(case.videos, engine.score_maps(batch_of(case)), strict=True):
            check_close(maps.fused, video.truth, "torch_backend", precision, what=f"{name} {video.video_id}")
