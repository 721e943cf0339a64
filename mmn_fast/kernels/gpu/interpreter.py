"""Triton's interpreter, which runs kernels on the CPU without compilation: for tests and rehearsals."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

_VARIABLE = "TRITON_INTERPRET"


def enable() -> None:
    """Run the kernels of modules that are imported later in the interpreter; the environment stays unchanged.

    Raises:
        RuntimeError: Triton is already imported without the interpreter; its own functions would be compiled.
    """
    if "triton" not in sys.modules:
        _import_interpreted()
    from triton import knobs
    from triton.runtime import interpreter

    if not knobs.runtime.interpret:
        raise RuntimeError(f"{_VARIABLE}: expected 1 before triton is imported, but triton is imported already")
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # Triton 3.6 holds a scalar as an array of one element; NumPy 2.4 no longer turns such an array into an int.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    if patch.__name__ != patch_lang_tensor.__name__:
        interpreter._patch_lang_tensor = patch_lang_tensor
        _spare_repeated_work(interpreter)


def _spare_repeated_work(interpreter: Any) -> None:
    """Make the interpreter two to three times as fast: Triton 3.6 repeats work with the same result in each call.

    Each function that a kernel calls patches all of Triton's language again, although the kernel's start has patched it
    already. Each lookup of an array's type builds its table anew.
    """
    from triton import language
    from triton.language.semantic import TritonSemantic

    patch_lang = interpreter._patch_lang

    def patch_lang_once(function: Any) -> Any:
        seen = [value for value in function.__globals__.values() if value is language or value is language.core]
        if any(language.core.is_builtin(one.load) for one in seen):
            return patch_lang(function)
        return interpreter._LangPatchScope()

    find, found = interpreter._get_np_dtype, {}

    def known_dtype(of: Any) -> Any:
        name = of.scalar.name
        if name not in found:
            found[name] = find(of)
        return found[name]

    check = TritonSemantic.binary_op_sanitize_overflow_impl

    def check_if_it_counts(self: Any, *operands: Any) -> None:
        if self.builder.options.debug:  # without it Triton computes seven arrays and asserts nothing
            check(self, *operands)

    interpreter._patch_lang = patch_lang_once
    interpreter._get_np_dtype = known_dtype
    TritonSemantic.binary_op_sanitize_overflow_impl = check_if_it_counts
    _share_shapes(language.core)


def _share_shapes(core: Any) -> None:
    """Let all arrays of a shape share its description, which Triton makes anew, text included, for every value."""
    shapes: dict[tuple[int, ...], Any] = {}
    blocks: dict[Any, Any] = {}
    describe = core.block_type.__init__

    def of_block(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(one.value if isinstance(one, core.constexpr) else one for one in shape)
        key = element_ty.name, sizes
        if key not in blocks:
            describe(self, element_ty, shape)
            blocks[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = blocks[key]

    def of_array(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape.values) if type.is_block() else ()
        if sizes not in shapes:
            shapes[sizes] = core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shapes[sizes]

    core.block_type.__init__ = of_block
    core.tensor.__init__ = of_array


def _import_interpreted() -> None:
    """Import Triton and set its switch. Triton reads the switch from the environment, and would also write it there."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        from triton import knobs
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
    propagate, knobs.propagate_env = knobs.propagate_env, False
    knobs.runtime.interpret = True
    knobs.propagate_env = propagate
