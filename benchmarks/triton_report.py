"""Compiles the Triton convolutions for a GPU, which need not be present, and reports registers, spills and copies.

python -m benchmarks.triton_report --arch 90 --block-rows 128 --block-cols 256 --kernel 9
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported, because interpreted kernels have no machine code

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmn_fast.kernels.gpu.conv import fourier
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig, shipped_choices
from mmn_fast.kernels.gpu.conv.gather import gather_conv_kernel
from mmn_fast.kernels.gpu.conv.gather_schedule import WORD_BITS
from mmn_fast.kernels.gpu.conv.stack import CHANNELS, round_up

_ALIGNED = [["tt.divisibility", 16]]


def compile_gather(
    arch: int, config: GatherConfig, kernel: int, width: int = 512, splits: int = 1, dtype: str = "fp16"
) -> dict[str, Any]:
    """Compile one layer's gathering kernel ahead of time and report its resources.

    Args:
        arch: 80 or 90.
        config: block sizes.
        kernel: k.
        width: C_in = C_out, a multiple of `stack.CHANNELS`; the compiler refuses other widths.
        splits: number of parts into which a tile's taps are split.
        dtype: "fp16" or "bf16".

    Returns:
        registers, spill_bytes, shared_bytes; copies_16 and copies_other, the asynchronous copies of 16 and of fewer
        bytes; wgmma and mma, the shapes of matrix instructions; tma, whether the copy engine loads the weights;
        buffers, the buffers in shared memory of each operand; late_fences, see `late_fences`.
    """
    descriptor = arch >= 90
    block = f"{config.block_k},{config.block_cols}"
    signature: dict[str, str] = {
        "x_ptr": f"*{dtype}",
        "weights": f"tensordesc<{dtype}[{block}]>" if descriptor else f"*{dtype}",
        "bias_ptr": "*fp32",
        "cells_in_ptr": "*i32",
        "cells_out_ptr": "*i32",
        "cell_weights_ptr": "*fp32",
        "items_ptr": "*i32",
        "out_ptr": "*fp32" if splits > 1 else f"*{dtype}",
        **dict.fromkeys(("rows", "videos", "side_in", "n_items"), "i32"),
    }
    constants = {
        **{"C_IN": width, "C_OUT": width, **_padded(width, config), "KERNEL": kernel},
        **{"WORDS": -(-(kernel**2) // WORD_BITS), "SPLITS": splits},
        **{"BLOCK_M": config.block_rows, "BLOCK_N": config.block_cols, "BLOCK_K": config.block_k},
        **{"DESCRIPTOR": descriptor, "OVERLAP": descriptor},
    }
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return _compile(gather_conv_kernel, arch, signature, constants, options)


def compile_products(arch: int, config: GatherConfig, width: int = 512) -> dict[str, Any]:
    """Compile the products of a layer by FFT tiles in fp16 ahead of time.

    Args:
        arch: 80 or 90.
        config: block sizes.
        width: C_in = C_out, as for `compile_gather`.

    Returns:
        The same report as `compile_gather`.
    """
    return _compile(
        fourier.product_kernel,
        arch,
        {
            **dict.fromkeys(("spectra_ptr", "weights_ptr", "out_ptr"), "*fp16"),
            **{"tile_rows": "i32", "weight_scale": "fp32"},
        },
        {
            **{"COMPLEX": 126, "C_IN": width, "C_OUT": width, **_padded(width, config)},
            **{"BLOCK_M": config.block_rows, "BLOCK_N": config.block_cols, "BLOCK_K": config.block_k},
            "OVERLAP": arch >= 90,
        },
        {"num_warps": config.warps, "num_stages": config.stages},
    )


def _padded(width: int, config: GatherConfig) -> dict[str, int]:
    return {"C_PAD": round_up(width, config.block_k), "N_PAD": round_up(width, config.block_cols)}


def _compile(
    kernel: Any, arch: int, signature: dict[str, str], constants: dict[str, Any], options: dict[str, int]
) -> dict[str, Any]:
    names = list(signature)
    pointers = {(names.index(name),): _ALIGNED for name, kind in signature.items() if kind.startswith("*")}
    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=pointers)
    return read_report(triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options))


def read_report(compiled: Any) -> dict[str, Any]:
    """Resources and instructions of a compiled kernel."""
    ptx, ttgir = compiled.asm["ptx"], compiled.asm["ttgir"]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _resource_usage(cubin)
    copies = [int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*\], (\w+)", ptx)]
    return {
        **usage,
        "shared_bytes": compiled.metadata.shared,
        "copies_16": copies.count(16),
        "copies_other": len(copies) - copies.count(16),
        "wgmma": sorted(set(re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+)", ptx))),
        "mma": sorted(set(re.findall(r"mma\.sync\.aligned\.(m\d+n\d+k\d+)", ptx))),
        "tma": "cp.async.bulk.tensor" in ptx,
        "late_fences": late_fences(ptx),
        "buffers": sorted(re.findall(r"ttg\.local_alloc : \(\) -> !ttg\.memdesc<((?:\d+x){3}\w+)", ttgir)),
    }


def late_fences(ptx: str) -> int:
    """Count products on tensor cores that may read shared memory before the threads' stores are visible to them.

    Tensor cores read shared memory through the async proxy. Threads that store an operand themselves must first fence
    their stores (`fence.proxy.async`) and then meet the other threads at a barrier. Operands that are copied
    asynchronously have no such stores.

    Args:
        ptx: a kernel's PTX; instructions are read in the order of the text.

    Returns:
        Number of products after stores that were not fenced, or whose fence came after the last barrier.
    """
    late, to_fence, to_meet = 0, False, False
    for line in ptx.splitlines():
        instruction = re.match(r"\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)", line)
        name = instruction[1] if instruction else ""
        if name.startswith(("st.shared", "stmatrix")):
            to_fence = to_meet = True
        elif name.startswith("fence.proxy.async"):
            to_fence = False
        elif name.startswith("bar"):
            to_meet = to_fence
        elif name.startswith("wgmma.mma_async"):
            late += to_meet
    return late


def _resource_usage(cubin: Path) -> dict[str, int]:
    tool = triton.knobs.nvidia.cuobjdump.path
    text = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    fields = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(fields["REG"]), "spill_bytes": int(fields["STACK"]) + int(fields["LOCAL"])}


def report_shipped() -> dict[str, dict[str, Any]]:
    """Compile every shipped choice for its own architecture and report it.

    The gathering kernel is compiled for the kernel width that needs most registers, 9.
    """
    reports = {}
    for arch, configs in shipped_choices().items():
        for name, config in configs.items():
            number = int(arch.removeprefix("sm_"))
            if name == "products" or name.startswith("fft"):
                reports[f"{arch} {name}"] = compile_products(number, config)
            else:
                splits = config.max_splits if name == "few" else 1
                reports[f"{arch} {name}"] = compile_gather(number, config, 9, splits=splits)
    return reports


def report_narrow(widths: Sequence[int] = (CHANNELS, 3 * CHANNELS)) -> dict[str, dict[str, Any]]:
    """Compile the sm_90 kernels at widths that fill no block, and report them."""
    reports = {}
    for width in widths:
        for name, config in shipped_choices()["sm_90"].items():
            products = name == "products" or name.startswith("fft")
            found = compile_products(90, config, width) if products else compile_gather(90, config, 5, width)
            reports[f"{name}, {width} channels"] = found
    return reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shipped", action="store_true", help="report every shipped choice instead of one")
    parser.add_argument("--narrow", action="store_true", help="report narrow layers, in the blocks shipped for sm_90")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--kernel", type=int, default=5)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--dtype", default="fp16")
    for name, value in (("block-rows", 128), ("block-cols", 256), ("block-k", 64), ("warps", 8), ("stages", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    if a.shipped:
        print(json.dumps(report_shipped()))
        return
    if a.narrow:
        print(json.dumps(report_narrow()))
        return
    config = GatherConfig(a.block_rows, a.block_cols, a.block_k, a.warps, a.stages, 1)
    print(json.dumps(compile_gather(a.arch, config, a.kernel, a.width, a.splits, a.dtype)))


if __name__ == "__main__":
    main()
