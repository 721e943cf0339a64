"""Devices for tests of the GPU engine's operators: the kernels' twins on the CPU, and the kernels on a device."""

from __future__ import annotations

import pytest
import torch

from mmn_fast.kernels import host

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not (torch.cuda.is_available() and host.build_info()["cuda"]):
        pytest.skip("no CUDA device, or a build without CUDA")
    return str(request.param)


@pytest.fixture(params=list(PRECISIONS))
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)
