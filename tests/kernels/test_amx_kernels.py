"""The AMX products on any host with AVX-512: amx_double.cc compiles their source with tiles in plain memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mmn_fast import _C
from mmn_fast.geometry import proposal_plan
from mmn_fast.kernels.cpu.cell_runs import RUN_CELLS, cell_runs
from tests.tolerances import check_close

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif("avx512" not in _C.available_cpu_isas(), reason="this host lacks AVX-512"),
]
TERMS = [(1, 1), (2, 1), (2, 2)]


class GemmArgs(ctypes.Structure):
    """csrc/cpu/kernels/products/gemm.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "a_rows")),
        *(("a_stride", ctypes.c_int64), ("b", ctypes.c_void_p), ("c", ctypes.c_void_p), ("c_rows", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in ("c_stride", "rows", "group", "k", "imaginary_a", "imaginary_c")),
        *(("add", ctypes.c_bool), ("terms_a", ctypes.c_int), ("terms_b", ctypes.c_int), ("pack", ctypes.c_void_p)),
    ]


class FillSlotsArgs(ctypes.Structure):
    """csrc/cpu/kernels/products/run_products.h."""

    _fields_ = [
        ("in", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("in_stride", "channels")),
        ("rows", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "steps", "slots")),
        ("inputs", ctypes.c_void_p),
    ]


class RunProductsArgs(ctypes.Structure):
    """csrc/cpu/kernels/products/run_products.h."""

    _fields_ = [
        ("inputs", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "steps", "slots")),
        ("weights", ctypes.c_void_p),
        ("num_taps", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("pairs", "taps")),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("bias", "cell_weights")),
        ("relu", ctypes.c_bool),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("sums", ctypes.c_void_p),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("amx") / "amx_double.so"
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-mavx2", "-mfma"]
    flags += [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
    source = Path(__file__).with_name("amx_double.cc")
    subprocess.run([str(COMPILER), *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to the nearest bf16, ties to even; return the bits as uint16."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def terms_of(x: np.ndarray, count: int) -> list[np.ndarray]:
    """Split float32 values into bf16 terms, as float32."""
    found, rest = [], x.astype(np.float32)
    for _ in range(count):
        found.append((to_bf16(rest).astype(np.uint32) << 16).view(np.float32))
        rest = rest - found[-1]
    return found


def pack(b: np.ndarray, terms: int) -> np.ndarray:
    """Pack [k, columns] into panels of 32 columns, in the layout of csrc/cpu/kernels/products/gemm.h."""
    k, columns = b.shape
    padded = np.zeros((-(-k // 32) * 32, columns), np.float32)
    padded[:k] = b
    steps = np.stack([to_bf16(term) for term in terms_of(padded, terms)])
    # [term, step, pair, 2, panel, half, column] -> [panel, step, term, half, pair, column, 2]
    parts = steps.reshape(terms, len(padded) // 32, 16, 2, columns // 32, 2, 16)
    return np.ascontiguousarray(parts.transpose(4, 1, 0, 5, 2, 6, 3))


def product(a: np.ndarray, b: np.ndarray, terms: tuple[int, int]) -> np.ndarray:
    """Compute a @ b from the operands' terms in float64, without the product of both low terms."""
    left, right = (terms_of(x, count) for x, count in zip((a, b), terms, strict=True))
    total = left[0].astype(np.float64) @ right[0]
    if terms[0] == 2:
        total += left[1].astype(np.float64) @ right[0]
    if terms[1] == 2:
        total += left[0].astype(np.float64) @ right[1]
    return total


def run(
    library: ctypes.CDLL, a: np.ndarray, packed: np.ndarray, c: np.ndarray, terms: tuple[int, int], **changed: int
) -> None:
    scratch = np.full(224 * ((2 * a.shape[1] + 63) // 64 * 68 + 64), np.nan, np.float32)
    fields = {"a_stride": a.shape[1], "c_stride": c.shape[1], "rows": len(a), "group": 1, "k": a.shape[1]}
    fields |= {"terms_a": terms[0], "terms_b": terms[1], "add": False} | changed
    args = GemmArgs(a=a.ctypes.data, b=packed.ctypes.data, c=c.ctypes.data, pack=scratch.ctypes.data, **fields)
    panels = packed.shape[0]
    library.multiply(
        ctypes.byref(args), ctypes.c_int("imaginary_a" in changed), ctypes.c_int64(0), ctypes.c_int64(panels)
    )


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(("rows", "k", "columns"), [(1, 5, 32), (17, 33, 64), (131, 96, 32), (32, 300, 32)])
def test_products_are_those_of_the_terms(
    library: ctypes.CDLL, rows: int, k: int, columns: int, terms: tuple[int, int]
) -> None:
    rng = np.random.default_rng(rows + k)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, k), (k, columns)))
    c = np.full((rows, columns), np.nan, np.float32)
    run(library, a, pack(b, terms[1]), c, terms)
    expected = product(a, b, terms)
    check_close(c / np.sqrt(k), expected / np.sqrt(k), "amx_products")
    run(library, a, pack(b, terms[1]), c, terms, add=True)
    check_close(c / np.sqrt(k), 2 * expected / np.sqrt(k), "amx_products")


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(("rows", "k"), [(1, 5), (19, 40), (130, 64)])
def test_complex_products_are_those_of_the_terms(
    library: ctypes.CDLL, rows: int, k: int, terms: tuple[int, int]
) -> None:
    rng = np.random.default_rng(rows + k)
    x, y = (rng.standard_normal((rows, k)).astype(np.float32) for _ in range(2))
    u, v = (rng.standard_normal((k, 32)).astype(np.float32) for _ in range(2))
    a = np.concatenate([x, y], 1)
    panels = [np.concatenate([u[:, half], v[:, half]], 1) for half in (slice(0, 16), slice(16, 32))]
    packed = np.concatenate([pack(panel, terms[1]) for panel in panels])
    c = np.full((rows, 64), np.nan, np.float32)
    run(library, a, packed, c, terms, k=k, imaginary_a=k, imaginary_c=32)
    real = product(x, u, terms) - product(y, v, terms)
    imaginary = product(x, v, terms) + product(y, u, terms)
    check_close(c / np.sqrt(2 * k), np.concatenate([real, imaginary], 1) / np.sqrt(2 * k), "amx_products")


@pytest.mark.parametrize(("geometry", "batch", "c_in"), [((9, (4, 2), 4, 2), 1, 33), ((17, (5, 4), 5, 1), 2, 300)])
def test_runs_of_cells_multiply_what_the_plan_says(
    library: ctypes.CDLL, geometry: tuple[int, tuple[int, ...], int, int], batch: int, c_in: int
) -> None:
    plan, columns = proposal_plan(*geometry), 32
    layer, runs, rng = plan.layers[0], cell_runs(plan, 0), np.random.default_rng(c_in)
    x = rng.standard_normal((len(plan.inputs), batch, c_in)).astype(np.float32)
    weight = rng.standard_normal((plan.kernel**2, c_in, columns)).astype(np.float32)
    bias = rng.standard_normal(columns).astype(np.float32)

    pairs, taps = [], []
    for tile in range(0, len(runs.outputs), 2):
        sides, first = runs.tile_taps[tile : tile + 2], len(taps)
        lists = [np.flatnonzero((sides[0] == left) & (sides[1] == right)) for left, right in ((1, 1), (1, 0), (0, 1))]
        for tap in np.concatenate(lists):
            taps.append([tap, *(runs.starts[tile : tile + 2] + runs.tap_offsets[tap])])
        counts = (runs.outputs[tile : tile + 2] >= 0).sum(1)
        pairs.append([*counts, *runs.outputs[tile : tile + 2].ravel(), first, *map(len, lists)])
    pair_table, tap_table = np.array(pairs, np.int32), np.array(taps, np.int32)
    # [tap, step, half, pair, column, 2] -> [step, tap, half, pair, column, 2]
    packed = np.ascontiguousarray(np.stack([pack(matrix, 1)[0, :, 0] for matrix in weight]).swapaxes(0, 1))
    steps = packed.shape[0]
    inputs = np.full((batch, steps, len(runs.slots), 32), 0x7FC0, np.uint16)  # NaN in bf16
    out = np.full((len(layer.cells), batch, columns), np.nan, np.float32)
    sums = np.full(len(pairs) * 2 * RUN_CELLS * 32, np.nan, np.float32)
    fill = FillSlotsArgs(x.ctypes.data, c_in, c_in, runs.slots.ctypes.data, batch, steps, len(runs.slots))
    fill.inputs = inputs.ctypes.data
    args = RunProductsArgs(inputs.ctypes.data, batch, steps, len(runs.slots), packed.ctypes.data, len(weight))
    args.pairs, args.taps, args.stride = pair_table.ctypes.data, tap_table.ctypes.data, runs.stride
    args.bias, args.cell_weights = bias.ctypes.data, layer.cell_weights.ctypes.data
    args.relu, args.out, args.out_stride, args.sums = True, out.ctypes.data, columns, sums.ctypes.data
    library.multiply_runs(ctypes.byref(fill), ctypes.byref(args), ctypes.c_int64(1), ctypes.c_int64(len(pairs)))

    padded = np.concatenate([terms_of(x, 1)[0], np.zeros((1, batch, c_in), np.float32)])
    rounded = terms_of(weight, 1)[0].astype(np.float64)
    expected = np.einsum("rtbc,tcd->rbd", padded[layer.neighbours].astype(np.float64), rounded) + bias
    expected = np.maximum(expected, 0) * layer.cell_weights[:, None, None]
    scale = np.sqrt(c_in * len(weight))
    check_close(out / scale, expected / scale, "amx_products")
