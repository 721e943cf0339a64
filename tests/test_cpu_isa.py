"""The choice of an instruction set: MMN_FAST_CPU_ISA selects or refuses; and ISA files stay self-contained."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmn_fast import _C

ISAS = ["generic", "avx2", "avx512", "avx512_bf16", "amx"]
WORDS = f"{', '.join(ISAS[:-1])} or {ISAS[-1]}"
CSRC = Path(__file__).parents[1] / "csrc"


def python(script: str, isa: str | None) -> subprocess.CompletedProcess[str]:
    """Run a script in a new process, because a process chooses its instruction set only once."""
    env = {key: value for key, value in os.environ.items() if key != "MMN_FAST_CPU_ISA"}
    env |= {} if isa is None else {"MMN_FAST_CPU_ISA": isa}
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)


PRINT_ISA = "from mmn_fast.kernels import host; print(host.cpu_isa())"
RUN_A_KERNEL = """
import numpy as np
from mmn_fast.kernels.cpu import ops
ops.temporal_nms(np.ones((1, 1), np.float32), np.ones((1, 2), np.float32), 0.5, 1)
"""


@pytest.mark.parametrize("isa", ISAS)
def test_environment_selects_an_isa_of_the_host_and_refuses_another(isa):
    result = python(PRINT_ISA, isa)
    if isa in _C.available_cpu_isas():
        assert result.stdout.strip() == isa
    else:
        assert re.search(rf"InputError: MMN_FAST_CPU_ISA: expected one of generic.*, got {isa}: ", result.stderr)


def test_environment_with_an_unknown_word_is_refused_at_first_use_and_not_at_import():
    message = f"Error: MMN_FAST_CPU_ISA: expected {WORDS}, got 'sse9'"
    assert python("import mmn_fast.kernels.cpu.ops", "sse9").returncode == 0
    assert message in python(PRINT_ISA, "sse9").stderr
    assert message in python(RUN_A_KERNEL, "sse9").stderr


def test_default_is_the_highest_isa_that_brings_kernels():
    own = [isa for isa in _C.available_cpu_isas() if isa in _C.kernel_isas(isa).values()]
    assert python(PRINT_ISA, None).stdout.strip() == own[-1]
    assert python(PRINT_ISA, "").stdout.strip() == own[-1]


def test_isas_rise_from_generic():
    available = _C.available_cpu_isas()
    assert available == ISAS[: len(available)]


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in _C.available_cpu_isas()])
def test_kernel_isas_tell_where_an_isa_has_no_code_of_its_own(isa):
    expected = "avx512" if isa in _C.bf16_isas() else isa  # such ISAs only add bf16 products
    ops = ("temporal_nms", "match_scores", "top_moments", "search_moments")
    assert _C.kernel_isas(isa) == {**dict.fromkeys(ops, expected), "proposal_conv": isa, "text_encoder": isa}


def test_isa_argument_is_checked():
    with pytest.raises(ValueError, match=f"^isa: expected {WORDS}, got 'neon'$"):
        _C.kernel_isas("neon")


@pytest.mark.parametrize("path", sorted((CSRC / "cpu" / "isa").glob("kernels_*.cc")), ids=lambda path: path.name)
def test_isa_files_include_nothing_whose_inline_code_could_leak(path):
    """The linker keeps one copy of an inline std function, for every host; it could be the one compiled for AVX-512."""
    seen, todo = set(), [path]
    while todo:
        for kind, header in re.findall(r'^#include ([<"])(.+)[>"]$', todo.pop().read_text(), re.MULTILINE):
            if header not in seen:
                seen.add(header)
                todo += [CSRC / header] if kind == '"' else []
    allowed = {"immintrin.h", "cstdint", "cstddef", "ops/temporal_nms.h"}
    allowed |= {"ops/match_scores.h", "ops/top_moments.h", "ops/search_moments.h"}
    # These headers only hold functions over the file's own Vec. Its namespace is unnamed, so no two files share a copy.
    allowed |= {"common/device.h", "common/fourier_lines.h"}
    allowed |= {"cpu/isa/kernels.h", "cpu/isa/list.h"} | {
        f"cpu/kernels/{name}.h" for name in ("rows", "search/search_moments", "text", "tile_transform")
    }
    allowed |= {f"cpu/kernels/products/{name}.h" for name in ("gemm", "run_products")}
    assert {header for header in seen if not header.endswith("-inl.h")} <= allowed
    lines = (CSRC / "common" / "fourier_lines.h").read_text()
    assert lines.count("MMN_DEVICE") == lines.count("template <class A, class F = typename A::F>\nMMN_DEVICE") > 0
