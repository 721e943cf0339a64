"""Model `mmn_ground` of a Triton repository: turns features, a duration and sentences into moments.

The export copies this file into the repository as `model.py` of Triton's Python backend; the server's Python needs
mmn_fast (not torch). The embeddings and scores come from `mmn_video`, `mmn_text` and `mmn_score` of the same server.

Inputs: features float32 [R, D], duration_s float32 [1], sentences string [S], top_k int32 [1], at most the number of
proposals (default 5, or the number of proposals if it is less).
Outputs: moments float32 [S, K, 2] in seconds, scores float32 [S, K], proposals int32 [S, K]. If suppression leaves
fewer than K, the remaining proposals are -1, the remaining moments and scores 0. Bad input fails only its own request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # a module of the server

from mmn_fast.artifact.manifest import TOKENIZER, check_files, read_manifest
from mmn_fast.artifact.sidecar import BUCKETS, text_batches
from mmn_fast.errors import InputError
from mmn_fast.features import check_duration, pre_clips
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.postprocess import select_moments
from mmn_fast.tokenizer import load_tokenizer

_TOP_K = 5
Arrays = dict[str, npt.NDArray[Any]]


class _CallFailedError(Exception):
    """Another model of the server returned an error."""


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest and the tokenizer next to this file."""
        here = Path(__file__).parent
        self.manifest = read_manifest(here)
        self.preset = self.manifest.preset
        self.cells = plan_for(self.preset).cells
        check_files(here, self.manifest, [TOKENIZER])
        self.tokenizer = load_tokenizer(here / TOKENIZER, self.manifest.text.max_tokens)
        self.score_inputs = {spec.name for spec in self.manifest.signature("score").inputs}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with one response, in order."""
        responses = []
        for request in requests:
            try:
                outputs = [pb_utils.Tensor(name, array) for name, array in self._ground(request).items()]
                responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
            except (InputError, _CallFailedError) as error:
                responses.append(pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error))))
        return responses

    def _ground(self, request: Any) -> Arrays:
        duration_s = float(_one(request, "duration_s"))
        check_duration(duration_s, "duration_s")
        top_k = int(_one(request, "top_k", min(_TOP_K, len(self.cells))))
        if not 1 <= top_k <= len(self.cells):  # a larger top_k would only add padding, without limit
            raise InputError(f"top_k: expected an integer from 1 to {len(self.cells)}, got {top_k}")
        features = pb_utils.get_input_tensor_by_name(request, "features").as_numpy()
        clips = pre_clips(features, self.preset, "features")
        sentences = _sentences(pb_utils.get_input_tensor_by_name(request, "sentences").as_numpy())
        text = self._encode_text(sentences)
        names = ("video_contrastive", "video_iou")
        shape = (1, self.preset.num_pre_clips, self.preset.input_size)
        given = self._call("mmn_video", {"pre_clips": clips.reshape(shape)}, names)
        video = {name: given[name][0] for name in names}
        if "duration_s" in self.score_inputs:
            video["duration_s"] = np.array([duration_s], np.float32)
        moments = cells_to_moments(self.cells, duration_s, self.preset.num_clips)
        fused = np.empty((len(sentences), len(self.cells)), np.float32)
        most = BUCKETS["S"][-1]
        for start in range(0, len(sentences), most):
            part = {name: array[start : start + most] for name, array in text.items()}
            fused[start : start + most] = self._call("mmn_score", video | part, ("fused_scores",))["fused_scores"]
        chosen = select_moments(fused, moments, self.preset.nms_iou, top_k)
        there, rows = chosen >= 0, np.maximum(chosen, 0)
        return {
            "moments": np.where(there[..., None], moments[rows], np.float32(0)),
            "scores": np.where(there, np.take_along_axis(fused, rows, 1), np.float32(0)),
            "proposals": chosen,
        }

    def _encode_text(self, sentences: list[str]) -> Arrays:
        names = ("text_contrastive", "text_iou")
        encoded = {name: np.empty((len(sentences), self.preset.joint_size), np.float32) for name in names}
        for rows, ids, mask in text_batches(self.tokenizer.encode(sentences), self.manifest.text.max_tokens):
            given = self._call("mmn_text", {"token_ids": ids, "attention_mask": mask}, names)
            for name in names:
                encoded[name][rows] = given[name]
        return encoded

    def _call(self, model: str, inputs: Arrays, outputs: tuple[str, ...]) -> Arrays:
        """Call another model of this server; its outputs are on the CPU."""
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()]
        response = pb_utils.InferenceRequest(
            model_name=model,
            requested_output_names=list(outputs),
            inputs=tensors,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise _CallFailedError(f"{model}: {response.error().message()}")
        return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs}


def _one(request: Any, name: str, default: Any = None) -> Any:
    """The only value of an input."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise InputError(f"{name}: expected one value, got {len(values)}")
    return values[0]


def _sentences(values: npt.NDArray[Any]) -> list[str]:
    sentences = []
    for number, value in enumerate(values.reshape(-1)):
        try:
            sentences.append(value.decode("utf-8") if isinstance(value, bytes) else str(value))
        except UnicodeDecodeError:
            raise InputError(f"sentences[{number}]: expected UTF-8, got {value[:40]!r}") from None
    return sentences
