"""What `kernels.gpu.interpreter` spares Triton's interpreter changes no type and no check."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest
import triton.language as tl
from triton.language.semantic import TritonSemantic

from tests.kernels.conv_cases import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="with a device, Triton compiles")


def test_blocks_of_a_shape_share_its_description_and_keep_their_own_types() -> None:
    pointers = tl.pointer_type(tl.float16)
    for element in (tl.float32, tl.int32, pointers, tl.float32):
        block = tl.block_type(element, [tl.constexpr(4), 8])
        array = tl.tensor(None, block)
        assert (block.scalar, array.dtype, array.type) == (element, element, block)
        assert (list(block.shape), block.numel, array.numel.value) == ([4, 8], 32, 32)
        assert [size.value for size in array.shape] == [4, 8]
        assert str(block) == f"<{block.shape}, {element}>"
    assert tl.block_type(tl.float32, [4, 8]) != tl.block_type(tl.int32, [4, 8])
    assert len(tl.tensor(None, pointers).shape) == 0
    with pytest.raises(ValueError, match="must be a power of 2"):
        tl.block_type(tl.float32, [3])


@pytest.mark.parametrize("debug", [False, True])
def test_sums_beyond_32_bits_are_looked_at_where_triton_asserts(debug: bool) -> None:
    """Without `debug`, Triton drops the assertion, after computing its condition."""
    casts: list[object] = []

    class Asked(Exception):  # noqa: N818 - ends the check at its first step
        pass

    def cast(value: object, _: object) -> None:
        casts.append(value)
        raise Asked

    options = SimpleNamespace(debug=debug, sanitize_overflow=True)
    semantic, number = SimpleNamespace(builder=SimpleNamespace(options=options), cast=cast), tl.tensor(None, tl.int32)
    with suppress(Asked):
        TritonSemantic.binary_op_sanitize_overflow_impl(semantic, number, number, TritonSemantic.add)
    assert len(casts) == debug
