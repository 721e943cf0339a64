"""Backend "onnx" on CUDA: its requests, bindings and refusals, on a double of ONNX Runtime's CUDA provider."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import mmn_fast
from mmn_fast.errors import BackendUnavailable

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_Session, _OrtValue = onnxruntime.InferenceSession, onnxruntime.OrtValue
Placed = list[tuple[str, int]]


class _Binding:
    """The binding of a CPU session; it accepts a device's arrays and notes the device of each."""

    def __init__(self, binding: Any, placed: Placed) -> None:
        self._binding, self._placed = binding, placed

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self._binding.bind_ortvalue_input(name, value)

    def bind_output(self, name: str, device: str, number: int) -> None:
        self._placed.append((device, number))
        self._binding.bind_output(name, "cpu", 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """ONNX Runtime with a CUDA provider that computes on the CPU; the dict records requests and places of arrays."""
    seen: dict[str, Any] = {"asked": [], "inputs": [], "outputs": []}

    class Session:
        def __init__(self, path: str, settings: Any, providers: list[Any], enable_fallback: int) -> None:
            seen["asked"].append(providers)
            assert not enable_fallback
            self._session = _Session(path, settings, providers=[CPU])

        def get_providers(self) -> list[str]:
            return [CUDA, CPU]

        def io_binding(self) -> _Binding:
            return _Binding(self._session.io_binding(), seen["outputs"])

        def run_with_iobinding(self, binding: _Binding) -> None:
            self._session.run_with_iobinding(binding._binding)

    class OrtValue:
        @staticmethod
        def ortvalue_from_numpy(array: np.ndarray, device: str, number: int) -> Any:
            seen["inputs"].append((array.shape, (device, number)))
            return _OrtValue.ortvalue_from_numpy(array)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "OrtValue", OrtValue)
    return seen


def test_inputs_and_outputs_lie_on_the_device_that_was_asked_for(cuda: dict[str, Any], demo_export: Path) -> None:
    rng = np.random.default_rng(0)
    query = mmn_fast.Query(
        mmn_fast.Video(rng.standard_normal((40, 357)).astype(np.float32), 20.0), ["a red circle moves", "it stops"]
    )
    engine = mmn_fast.load(demo_export, backend="onnx", device="cuda:1")
    maps = engine.score_maps([query])[0]
    assert cuda["asked"] == [[(CUDA, {"device_id": "1", "use_tf32": "0"}), CPU]] * 3
    assert {place for _, place in cuda["inputs"]} == set(cuda["outputs"]) == {("cuda", 1)}
    shape = engine.encode_video([query.video]).contrastive.shape[1:]
    assert [one for one, _ in cuda["inputs"]].count(shape) == 2  # a video's embeddings are uploaded once per call
    assert engine.info()["device"] == "cuda:1"
    expected = mmn_fast.load(demo_export, backend="onnx", device="auto")
    assert expected.info()["device"] == "cuda:0"
    np.testing.assert_array_equal(maps.fused, expected.score_maps([query])[0].fused)


def _fails(error: str) -> Callable[..., Any]:
    def session(path: str, settings: Any, providers: list[Any], enable_fallback: int) -> Any:
        if providers[0] != CPU:
            raise RuntimeError(f"{error}\nand a long trace")
        return _Session(path, settings, providers=providers)

    return session


def test_messages_of_cuda_are_passed_on(
    cuda: dict[str, Any], demo_export: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", _fails("CUDA failure 101: invalid device ordinal"))
    with pytest.raises(BackendUnavailable, match=r"on cuda \(CUDA failure 101: invalid device ordinal\)$"):
        mmn_fast.load(demo_export, backend="onnx", device="cuda:9")
    assert capfd.readouterr().out == ""


def test_auto_takes_the_cpu_where_cuda_does_not_start_and_says_why(
    cuda: dict[str, Any], demo_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", _fails("CUDA failure 100: no CUDA-capable device"))
    info = mmn_fast.load(demo_export, backend="onnx").info()
    assert info["device"] == "cpu"
    assert "CUDA failure 100: no CUDA-capable device" in info["not_cuda"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("libcudnn.so.9: cannot open", "libcudnn.so.9: cannot open"),
        (None, "so the driver or the device does not answer"),
    ],
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_did_not_load_is_not_passed_over(
    found: str | None, message: str, demo_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this case ONNX Runtime lists the provider, logs why it does not load, and runs on the CPU."""

    def library(path: str) -> None:
        assert path.endswith("libonnxruntime_providers_cuda.so")
        if found:
            raise OSError(found)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("mmn_fast.backends.ort.ctypes", SimpleNamespace(CDLL=library))
    with pytest.raises(BackendUnavailable, match=f"ONNX Runtime loaded {CPU} alone \\(.*{message}"):
        mmn_fast.load(demo_export, backend="onnx", device="cuda:0")
