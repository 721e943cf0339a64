"""The ONNX backend: an export's graphs on ONNX Runtime, on its CPU or CUDA provider. Needs no torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Int64
from mmn_fast.artifact.manifest import GRAPHS, Manifest, check_files, read_manifest
from mmn_fast.backends.base import Backend, Branches, Settings
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.precisions import EXPORTED, refusal
from mmn_fast.process.cores import limited_cores
from mmn_fast.process.forks import Lock, Opened, fork_waits, renew_in_child
from mmn_fast.process.onnxruntime_module import onnxruntime_module

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def _how_to_get_cuda() -> str:
    """What to install. Both distributions hold the same package, so the later installation overwrites the earlier."""
    both = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            both.append(f"{name} {version(name)}")
    if len(both) == 2:
        return (
            f"{' and '.join(both)} are both installed and overwrite each other: pip uninstall both, then pip install"
            " mmn_fast[onnx-gpu]"
        )
    return "pip uninstall onnxruntime, then pip install mmn_fast[onnx-gpu]; the two cannot be installed together"


class OnnxBackend(Backend):
    """Runs the three graphs of an export, in the export's precision.

    Videos and sentences are encoded one at a time, unpadded, and scored one sentence at a time. ONNX Runtime picks its
    algorithms by shape, so this makes a result independent of the rest of the batch, bit for bit.
    """

    name = "onnx"
    takes_exports = True

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed (pip install mmn_fast[onnx], for CUDA mmn_fast[onnx-gpu])"
        if lacking := refusal(precision, EXPORTED):
            return lacking
        if device == "cpu" and precision == "bf16":
            return "device 'cpu': ONNX Runtime multiplies bf16 on CUDA alone; export fp32 or fp16 for it"
        if device.startswith("cuda") or precision == "bf16":
            if precision == "int8":
                return f"device {device!r}: int8 graphs are for CPUs; export fp16 for it"
            onnxruntime = onnxruntime_module()
            providers = onnxruntime.get_available_providers()
            if _CUDA not in providers:
                return (
                    f"device {device!r}: this onnxruntime {onnxruntime.__version__} has no CUDA provider, only"
                    f" {', '.join(providers)} ({_how_to_get_cuda()})"
                )
        return None

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        super().__init__(model, settings)
        assert model.exported is not None, "engine.load gives this backend exports only"
        manifest = read_manifest(model.exported)
        self.threads = settings.threads or limited_cores()
        absent = [name for name in GRAPHS if name not in manifest.graphs]
        if absent:
            raise InputError(
                f"model: {model.source}: the engine needs {', '.join(GRAPHS)}, this export has no"
                f" {' and no '.join(absent)}"
            )
        if manifest.raw_features:
            raise InputError(
                f"model: {model.source}: video.onnx takes source rows, the engine averages them itself;"
                " export the model without --raw-features"
            )
        if settings.precision_or(manifest.precision) != manifest.precision:
            raise BackendUnavailable(
                f"backend 'onnx': precision {settings.precision!r}: {model.source} was exported as"
                f" {manifest.precision}; mmn-fast export --precision {settings.precision} makes the other"
            )
        self.precision, self._fp32_stages = manifest.precision, manifest.fp32_stages
        kind, _, number = settings.device.partition(":")
        reason = self.unavailable_reason(settings.device, self.precision)
        if reason is not None:
            raise BackendUnavailable(f"backend 'onnx': {reason}")
        self._takes_duration = manifest.top_k is not None
        self._device: tuple[str, int] = kind, int(number or 0)
        self._not_cuda: str | None = None  # why device "auto" became the CPU
        if kind == "auto":
            self._not_cuda = self.unavailable_reason("cuda", self.precision)
            self._device = ("cpu" if self._not_cuda else "cuda"), 0
        try:
            self._graphs = _open_graphs(model.exported, manifest, self._device, self.threads)
        except BackendUnavailable as error:
            if kind != "auto" or self._device[0] == "cpu" or self.precision == "bf16":
                raise
            self._device, self._not_cuda = ("cpu", 0), str(error)
            self._graphs = _open_graphs(model.exported, manifest, self._device, self.threads)
        P, J = manifest.signature("score").inputs[0].shape
        self._sizes = int(P), int(J)

    def encode_video(self, pre_clips: Float32) -> Branches:
        contrastive, iou = np.empty((2, len(pre_clips), *self._sizes), np.float32)
        for row in range(len(pre_clips)):
            self._graphs["video"](
                {"pre_clips": pre_clips[row : row + 1]},
                {"video_contrastive": contrastive[row : row + 1], "video_iou": iou[row : row + 1]},
            )
        return contrastive, iou

    def encode_text(self, token_ids: Sequence[Int64]) -> Branches:
        contrastive, iou = np.empty((2, len(token_ids), self._sizes[1]), np.float32)
        for row, ids in enumerate(token_ids):
            self._graphs["text"](
                {"token_ids": ids[None], "attention_mask": np.ones_like(ids)[None]},
                {"text_contrastive": contrastive[row : row + 1], "text_iou": iou[row : row + 1]},
            )
        return contrastive, iou

    def score(self, video: Branches, text: Branches) -> Branches:
        graph = self._graphs["score"]
        contrastive, iou = np.empty((2, len(text[0]), self._sizes[0]), np.float32)
        # The video's embeddings go to the device once.
        given: dict[str, Any] = {
            name: graph.take(array) for name, array in zip(("video_contrastive", "video_iou"), video, strict=True)
        }
        if self._takes_duration:
            given["duration_s"] = graph.take(np.ones(1, np.float32))  # any value: the engine chooses moments itself
        for row in range(len(text[0])):
            graph(
                {**given, "text_contrastive": text[0][row : row + 1], "text_iou": text[1][row : row + 1]},
                {"contrastive_scores": contrastive[row : row + 1], "iou_scores": iou[row : row + 1]},
            )
        return contrastive, iou

    def info(self) -> dict[str, Any]:
        graph = self._graphs["video"]
        return {
            "device": ":".join(map(str, self._device)) if self._device[0] == "cuda" else "cpu",
            **({"not_cuda": self._not_cuda} if self._not_cuda else {}),
            "precision": self.precision,
            **({"fp32_stages": self._fp32_stages} if self._fp32_stages else {}),
            "threads": self.threads or "ONNX Runtime's default",
            "providers": graph.session.get_providers(),
            "onnxruntime": onnxruntime_module().__version__,
        }


def _open_graphs(
    directory: Path, manifest: Manifest, device: tuple[str, int], threads: int | None
) -> dict[str, _Graph]:
    return {name: _Graph(directory, manifest, name, device, threads) for name in manifest.graphs}


class _Graph:
    """One session, its inputs and outputs bound to the caller's memory or to the device's.

    A forked child lacks the session's threads, so it opens its own session at its first call.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, name: str, device: tuple[str, int], threads: int | None
    ) -> None:
        self._directory, self._manifest, self._file = directory, manifest, manifest.graphs[name]
        self._device, self._threads = device, threads
        self._outputs = [spec.name for spec in manifest.signature(name).outputs]
        self._opened = Opened.here(f"device {':'.join(map(str, device))!r}")
        self._opening = Lock()
        self._session: Any = self._open()
        renew_in_child(self._abandon)

    @property
    def session(self) -> Any:
        """The session of this process.

        Raises:
            BackendUnavailable: this process was forked after a session on CUDA was opened.
            InputError: this process was forked, and the export has changed since the parent opened it.
        """
        if self._device[0] == "cuda":
            self._opened.check()
        with self._opening:
            if self._session is None:
                parts = [name for name in self._manifest.files if name.startswith(self._file)]  # large weights apart
                check_files(self._directory, self._manifest, parts)
                self._session = self._open()
            return self._session

    def _abandon(self) -> None:
        """Leak the parent's session in a forked child: its destructor would wait for threads that do not exist."""
        if self._session is not None and (self._threads != 1 or self._device[0] == "cuda"):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None

    def _open(self) -> Any:
        onnxruntime, path = onnxruntime_module(), self._directory / self._file
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors alone; a failure to load is raised below
        if self._threads is not None:
            settings.intra_op_num_threads = self._threads
        wanted: list[Any] = [_CPU]
        if self._device[0] == "cuda":
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
            # TF32 would round fp32 operands to 11 bits.
            wanted.insert(0, (_CUDA, {"device_id": str(self._device[1]), "use_tf32": "0"}))
        try:
            with fork_waits:
                # With its fallback, ONNX Runtime would print CUDA's error and run on the CPU.
                session = onnxruntime.InferenceSession(str(path), settings, providers=wanted, enable_fallback=0)
        except Exception as error:  # ONNX Runtime has its own class for each kind of failure
            raise BackendUnavailable(
                f"backend 'onnx': {path}: ONNX Runtime does not load it on {self._device[0]}"
                f" ({str(error).splitlines()[0]})"
            ) from None
        loaded = session.get_providers()
        if self._device[0] == "cuda" and _CUDA not in loaded:
            raise BackendUnavailable(
                f"backend 'onnx': device 'cuda': ONNX Runtime loaded {', '.join(loaded)} alone ({_why_no_cuda()})"
            )
        return session

    def take(self, array: npt.NDArray[Any]) -> Any:
        """An array as a value on the device; on the CPU it shares the array's memory."""
        return onnxruntime_module().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *self._device)

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Float32]) -> None:
        """Run the graph and write the named outputs, contiguous arrays of the right shapes; drop the other outputs."""
        session = self.session
        binding = session.io_binding()
        kept = []  # a binding does not own its values
        for name, value in inputs.items():
            value = self.take(value) if isinstance(value, np.ndarray) else value
            kept.append(value)
            binding.bind_ortvalue_input(name, value)
        on_cpu = self._device[0] == "cpu"
        for name in self._outputs:
            if on_cpu and name in outputs:
                array = outputs[name]
                binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name, *self._device)
        with fork_waits:
            session.run_with_iobinding(binding)
        if not on_cpu:
            for name, value in zip(self._outputs, binding.get_outputs(), strict=True):
                if name in outputs:
                    outputs[name][...] = value.numpy()


def _why_no_cuda() -> str:
    """The system loader's error for ONNX Runtime's CUDA library; ONNX Runtime itself only logs it."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return "its CUDA library loads, so the driver or the device does not answer"
