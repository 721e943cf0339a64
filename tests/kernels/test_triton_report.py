"""The convolutions in Triton compiled ahead of time for sm_80 and sm_90: what each shipped choice takes of a device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reports() -> dict[str, Any]:
    # In a process of its own: in this one Triton may be interpreting.
    command = [sys.executable, "-m", "benchmarks.triton_report", "--shipped"]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


# Blocks of each operand in shared memory; before sm_90 Triton keeps one fewer than the stages asked for.
BUFFERS = {
    "sm_80 few": ["3x64x128xf16", "3x64x64xf16"],
    "sm_80 many": ["3x128x64xf16", "3x64x128xf16"],
    "sm_90 few": ["4x64x128xf16", "4x64x64xf16"],
    "sm_90 many": ["4x128x64xf16", "4x64x256xf16"],
}


def test_every_shipped_choice_is_reported(reports: dict[str, Any]) -> None:
    assert set(reports) == {*BUFFERS, "sm_80 products", "sm_90 products"}


@pytest.mark.parametrize("name", BUFFERS)
def test_copies_are_as_deep_and_wide_as_designed_and_nothing_spills(name: str, reports: dict[str, Any]) -> None:
    report = reports[name]
    assert report["spill_bytes"] == 0
    assert report["buffers"] == BUFFERS[name]
    assert report["copies_16"] > 0
    assert report["copies_other"] == 0
    assert report["shared_bytes"] <= (227 if name.startswith("sm_90") else 163) * 1024


@pytest.mark.parametrize(("name", "wgmma"), [("sm_90 few", "m64n128k16"), ("sm_90 many", "m64n256k16")])
def test_hopper_multiplies_with_wgmma_and_copies_weights_in_bulk(
    name: str, wgmma: str, reports: dict[str, Any]
) -> None:
    assert reports[name]["wgmma"] == [wgmma]
    assert reports[name]["mma"] == []
    assert reports[name]["tma"]


# Of both loops, complex points and real ones, each in the memory of the other. On sm_90 the operand that is negated
# goes through registers and has a buffer less.
_PRODUCT_BUFFERS = {
    "sm_80": ["3x128x32xf16"] * 4 + ["3x32x64xf16"] * 4,
    "sm_90": ["2x128x64xf16"] + ["3x128x64xf16"] * 3 + ["3x64x128xf16"] * 4,
}


@pytest.mark.parametrize("arch", _PRODUCT_BUFFERS)
def test_spectral_products_run_on_tensor_cores_with_copies_as_designed(arch: str, reports: dict[str, Any]) -> None:
    report = reports[f"{arch} products"]
    assert report["spill_bytes"] == 0
    assert report["wgmma"] == (["m64n128k16"] if arch == "sm_90" else [])
    assert bool(report["mma"]) == (arch == "sm_80")
    assert report["buffers"] == _PRODUCT_BUFFERS[arch]
    assert report["shared_bytes"] <= (227 if arch == "sm_90" else 163) * 1024
    assert report["copies_16"] > 0
    assert report["copies_other"] == 0
