"""Strict calls of PyTorch turn off settings that trade exactness for time, and restore them afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmn_fast.kernels.gpu.device import strict_arithmetic
from mmn_fast.process.torch_threads import strict_settings, strictly

cudnn, cuda, matmul = torch.backends.cudnn, torch.backends.cuda, torch.backends.cuda.matmul
REDUCTIONS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


def _state() -> dict[str, Any]:
    found = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")}
    names = [f"{name}{suffix}" for name in REDUCTIONS for suffix in ("", "_split_k")]
    found |= {name: getattr(matmul, name) for name in [*names, "allow_fp16_accumulation"] if hasattr(matmul, name)}
    return found | {"float32": torch.get_float32_matmul_precision(), "cudnn_attention": cuda.cudnn_sdp_enabled()}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = _state()
    yield
    assert _state() == before


@contextlib.contextmanager
def _loose() -> Iterator[None]:
    """Turn on every setting that trades exactness for time."""
    with contextlib.ExitStack() as back:
        for module, values in (
            (cudnn, {"benchmark": True, "deterministic": False, "allow_tf32": True}),
            (matmul, dict.fromkeys([*REDUCTIONS, "allow_fp16_accumulation"], True)),
        ):
            for name, value in values.items():
                back.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
        back.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high")
        yield


@pytest.mark.parametrize("how", ["settings", "arithmetic", "strictly"])
def test_strict_calls_sum_in_float32_and_take_no_attention_that_builds_plans(how: str) -> None:
    with _loose():
        before = _state()
        if how == "strictly":
            found = strictly(_state, None)
        else:
            with strict_settings if how == "settings" else strict_arithmetic():
                found = _state()
        assert _state() == before
    assert not any(found[name] for name in REDUCTIONS)
    assert not any((found["allow_fp16_accumulation"], found["benchmark"], found["allow_tf32"]))
    assert (found["deterministic"], found["float32"], found["cudnn_attention"]) == (True, "highest", False)


def test_settings_are_restored_after_an_exception() -> None:
    with _loose():
        before = _state()
        with pytest.raises(ZeroDivisionError), strict_arithmetic():
            raise ZeroDivisionError
        assert _state() == before


def test_a_users_choice_of_split_sums_in_cublas_is_restored() -> None:
    if not hasattr(matmul, f"{REDUCTIONS[0]}_split_k"):
        pytest.skip("this PyTorch has no such setting")
    matmul.allow_fp16_reduced_precision_reduction = (False, False)
    try:
        before = _state()
        with strict_settings:
            assert not matmul.allow_fp16_reduced_precision_reduction
        assert _state() == before
    finally:
        matmul.allow_fp16_reduced_precision_reduction = True


def test_attention_gives_the_same_where_cudnn_may_not_take_it() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with strict_settings:
        assert torch.equal(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), expected)
