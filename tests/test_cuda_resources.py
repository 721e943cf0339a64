"""Resources of every compiled CUDA kernel: registers, spills and stack, for both architectures."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = {"sm_80": "arch=compute_80,code=sm_80", "sm_90a": "arch=compute_90a,code=sm_90a"}

# 65,536 registers over 2,048 threads are 32 each, over 1,024 threads 64. These kernels move bytes, and half of the
# 2,048 threads suffices to keep enough loads in flight.
MOST_REGISTERS = 64


def _kernels(report: str) -> dict[str, dict[str, int]]:
    """Read each kernel's registers, stack frame and spilled bytes from the output of ptxas -v."""
    kernels: dict[str, dict[str, int]] = {}
    name = ""
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
            kernels[name] = {}
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name] |= {"stack": int(found[1]), "spills": int(found[2]) + int(found[3])}
        elif found := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(found[1])
    return kernels


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_kernel_spills_or_exceeds_its_registers(source: Path, architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    command = [
        *(nvcc, "-std=c++17", "-O3", "-fmad=false", "-I", str(ROOT / "csrc")),
        *("-gencode", ARCHITECTURES[architecture], "-Xptxas", "-v", "-cubin"),
        *("-o", str(tmp_path / "kernels.cubin"), str(source)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    kernels = _kernels(result.stderr)
    assert kernels, f"ptxas reported no kernel of {source.name}: {result.stderr}"
    for name, used in sorted(kernels.items()):
        print(
            f"{architecture} {used['registers']:3} registers {used['stack']:3} stack {used['spills']:3} spilled  {name}"
        )
        assert used["spills"] == 0, f"{name}: spills {used['spills']} bytes"
        assert used["registers"] <= MOST_REGISTERS, f"{name}: {used['registers']} registers"
        # An array that is indexed at run time goes to local memory and counts as stack.
        assert used["stack"] == 0, f"{name}: a stack frame of {used['stack']} bytes"
