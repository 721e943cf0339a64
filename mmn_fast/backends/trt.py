"""The TensorRT backend: the plans of an export (`mmn-fast export ... --tensorrt`) on one GPU, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmn_fast.arrays import Float32, Int64
from mmn_fast.artifact.manifest import GRAPHS, Signature, read_manifest
from mmn_fast.artifact.sidecar import text_batches
from mmn_fast.backends.base import Backend, Branches, Option, Settings
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.errors import BackendUnavailable
from mmn_fast.precisions import refusal
from mmn_fast.process.forks import Lock, Opened
from mmn_fast.runtime import cuda_api
from mmn_fast.runtime.cuda_api import Cuda
from mmn_fast.runtime.tensorrt_module import RUNTIME, tensorrt_module
from mmn_fast.runtime.tensorrt_plan import Arrays, Plan, open_plans

_PRECISIONS = ("fp32", "fp16", "bf16")


class TensorRTBackend(Backend):
    """Runs plans on the GPU; values go in and out as NumPy arrays.

    A batch is padded to the profile that takes it (`artifact.sidecar.BUCKETS`), and TensorRT picks kernels per profile.
    So a result can differ in bits with the rest of the call, but stays within the precision's error bound.
    """

    name = "tensorrt"
    takes_exports: ClassVar[bool] = True
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "cuda_graphs": Option.flag("replay each batch size as a CUDA graph from its second call on", default=True),
        "allow_host_code": Option.flag(
            "run the code that a version-compatible plan holds; without it, refuse the plan"
        ),
    }

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        if lacking := refusal(precision, _PRECISIONS):
            return lacking
        if device == "cpu":
            return "device 'cpu': it runs on CUDA devices only"
        _, reason = tensorrt_module(RUNTIME)
        return reason or cuda_api.unavailable_reason(cuda_api.device_number(device))

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        super().__init__(model, settings)
        assert model.exported is not None, "the engine hands over exports alone"
        manifest = read_manifest(model.exported)
        if settings.precision_or(manifest.precision) != manifest.precision:
            raise BackendUnavailable(
                f"precision {settings.precision!r}: the plans of {model.source} are {manifest.precision}"
            )
        self.precision, self._max_tokens = manifest.precision, manifest.text.max_tokens
        self._cuda = Cuda(cuda_api.device_number(settings.device))
        self._plans, self._version = open_plans(
            *(model.exported, manifest, GRAPHS, self._cuda),
            allow_host_code=self.options["allow_host_code"],
            cuda_graphs=self.options["cuda_graphs"],
        )
        self._gpu = self._cuda.gpu()
        self._opened = Opened.here(f"device 'cuda:{self._cuda.number}'")
        self._lock = Lock()
        self._stream = self._cuda.stream()

    def encode_video(self, pre_clips: Float32) -> Branches:
        plan = self._plans["video"]
        most = max(profile.sizes["B"] for profile in plan.profiles)
        parts = [
            self._run(plan, {"pre_clips": pre_clips[start : start + most]}) for start in range(0, len(pre_clips), most)
        ]
        return _joined(parts, plan.signature, ("video_contrastive", "video_iou"))

    def encode_text(self, token_ids: Sequence[Int64]) -> Branches:
        plan = self._plans["text"]
        shape = len(token_ids), self.preset.joint_size
        contrastive, iou = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for rows, ids, mask in text_batches(token_ids, self._max_tokens):
            found = self._run(plan, {"token_ids": ids, "attention_mask": mask})
            contrastive[rows], iou[rows] = found["text_contrastive"], found["text_iou"]
        return contrastive, iou

    def score(self, video: Branches, text: Branches) -> Branches:
        plan = self._plans["score"]
        most = max(profile.sizes["S"] for profile in plan.profiles)
        given: Arrays = {"video_contrastive": video[0], "video_iou": video[1]}
        if len(plan.signature.inputs) > 4:
            given["duration_s"] = np.ones(1, np.float32)  # any value: the engine chooses moments itself
        parts = []
        for start in range(0, len(text[0]), most):
            rows = slice(start, start + most)
            inputs = {**given, "text_contrastive": text[0][rows], "text_iou": text[1][rows]}
            parts.append(self._run(plan, inputs))
        return _joined(parts, plan.signature, ("contrastive_scores", "iou_scores"))

    def info(self) -> dict[str, Any]:
        return {
            "device": f"cuda:{self._cuda.number} ({self._gpu.name})",
            "precision": self.precision,
            "runtime": self._version,
            "cuda_graphs": self.options["cuda_graphs"],
        }

    def _run(self, plan: Plan, inputs: Arrays) -> Arrays:
        self._opened.check()
        with self._lock:
            self._cuda.make_current()
            return plan.run(inputs, self._stream.handle)


def _joined(parts: list[Arrays], signature: Signature, names: tuple[str, str]) -> Branches:
    shapes = {spec.name: spec.shape for spec in signature.outputs}
    contrastive, iou = (
        np.concatenate([part[name] for part in parts])
        if parts
        else np.empty((0, *(int(size) for size in shapes[name][1:])), np.float32)
        for name in names
    )
    return contrastive, iou
