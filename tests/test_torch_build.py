"""Facts about PyTorch that are known without importing it, and the choices that "auto" makes by them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmn_fast.backends import registry
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.kernels import host
from mmn_fast.process import torch_build


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch_build.has_cuda.cache_clear()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("__version__ = '2.9.1+cpu'\ncuda: Optional[str] = None\n", False),
        ("__version__ = '2.9.1+cu128'\ncuda: Optional[str] = '12.8'\n", True),
        ("cuda = '12.8'\nhip: Optional[str] = None\n", True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", True),
        ("__version__ = '2.9.1'\n", False),
        (None, False),
    ],
)
def test_cuda_is_read_from_the_version_file(
    content: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "version.py").write_text(content)
    monkeypatch.setattr(torch_build, "_folder", lambda: tmp_path)
    assert torch_build.has_cuda() is expected


@pytest.mark.slow
def test_it_agrees_with_pytorch_and_does_not_import_it() -> None:
    code = (
        "import sys; from mmn_fast.process import torch_build as t; said = t.is_installed(), t.version(), t.has_cuda();"
        "assert 'torch' not in sys.modules; import torch;"
        "assert said == (True, torch.__version__, torch.version.cuda is not None), said"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["sys.modules['torch'] = None", "sys.meta_path.insert(0, Block())"])
def test_without_pytorch_it_says_so(how: str) -> None:
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            raise ModuleNotFoundError('blocked', name=name)
{how}
from mmn_fast.process import torch_build as t
assert (t.is_installed(), t.version(), t.has_cuda()) == (False, '', False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_auto_takes_native_on_a_host_whose_gpu_no_backend_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "has_cuda_device", lambda: True)
    monkeypatch.setattr(torch_build, "has_cuda", lambda: False)
    choice = registry.choose("auto", "auto", "auto", exported=False)
    assert (choice.backend, choice.passed_over) == (NativeBackend, {})
    monkeypatch.setattr(torch_build, "has_cuda", lambda: True)
    choice = registry.choose("auto", "auto", "auto", exported=False)
    assert choice.backend.name == "torch"
    assert choice.passed_over["native"].startswith("device 'auto': there is a CUDA device, which PyTorch can use")


def test_auto_says_of_every_backend_why_none_runs() -> None:
    with pytest.raises(registry.BackendUnavailable) as refused:
        registry.choose("auto", "cpu", "int8", exported=False)
    for name, reason in [("native", "precision 'int8'"), ("torch", "precision 'int8'"), ("onnx", "it runs exports")]:
        assert f"backend {name!r}: {reason}" in str(refused.value)
