"""The convolutions in Triton, compiled ahead of time for sm_80 and sm_90: resources of each shipped choice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def _report(*options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    # A new process is needed, because Triton may be interpreting in this one.
    command = [sys.executable, "-m", "benchmarks.triton_report", *options]
    return subprocess.run(command, cwd=ROOT, check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def reports() -> dict[str, Any]:
    return json.loads(_report("--shipped").stdout)


# Blocks of each operand in shared memory; before sm_90 Triton keeps one block fewer than the requested stages.
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


# Buffers of both loops (complex points, real points), which share their memory. On sm_90 the negated operand goes
# through registers and has one buffer fewer.
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


def test_no_product_reads_what_was_stored_and_not_fenced_before_a_barrier(reports: dict[str, Any]) -> None:
    """The check covers every width that a kernel is compiled for: the layers' widths, and widths that fill no block."""
    narrow = json.loads(_report("--narrow").stdout)
    assert {name.partition(", ")[2] for name in narrow} == {"16 channels", "48 channels"}
    for name, report in {**reports, **narrow}.items():
        assert report["late_fences"] == 0, name
        assert report["copies_other"] == 0, name
        assert report["spill_bytes"] == 0, name
    assert all(report["copies_16"] for name, report in narrow.items() if not name.startswith("products"))


def test_no_kernel_is_compiled_for_other_widths() -> None:
    run = _report("--width", "17", check=False)
    assert run.returncode != 0
    assert "expected a width of whole CHANNELS" in run.stderr


STORE, FENCE, BARRIER = "@%p1 st.shared.b16 [%r1], %rs1;", "\tfence.proxy.async.shared::cta;", "bar.sync \t0;"
PRODUCT = "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%f1}, %rd1, %rd2;"
LATE = (
    ((STORE, FENCE, BARRIER, PRODUCT, PRODUCT), 0),
    ((STORE, BARRIER, FENCE, PRODUCT), 1),  # the order of Triton 3.6's code for 17 channels
    ((STORE, BARRIER, PRODUCT, PRODUCT), 2),
    ((STORE, FENCE, PRODUCT), 1),
    ((STORE, BARRIER, STORE, FENCE, BARRIER, PRODUCT, FENCE, PRODUCT), 0),
    (("cp.async.wait_group 1;", BARRIER, PRODUCT), 0),
)


def test_late_fences_are_counted() -> None:
    code = "from benchmarks.triton_report import late_fences; import sys; print(*map(late_fences, sys.argv[1:]))"
    command = [sys.executable, "-c", code, *("\n".join(lines) for lines, _ in LATE)]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert [int(count) for count in run.stdout.split()] == [count for _, count in LATE]
