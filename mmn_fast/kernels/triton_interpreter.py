"""Triton's interpreter, in which kernels run on the CPU without being compiled: for tests and rehearsals."""

from __future__ import annotations

import os
import sys
from typing import Any


def enable() -> None:
    """Run the kernels of modules imported from here on in the interpreter.

    Raises:
        RuntimeError: Triton was imported before, without TRITON_INTERPRET=1: its own functions would be compiled.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" and "triton" in sys.modules:
        raise RuntimeError("TRITON_INTERPRET: expected 1 before triton is imported, got it imported without")
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # Triton 3.6 holds a scalar as an array of one element, which NumPy 2.4 no longer turns into an int.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    if patch.__name__ != patch_lang_tensor.__name__:
        interpreter._patch_lang_tensor = patch_lang_tensor
