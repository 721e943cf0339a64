"""Post-training quantisation of an export's video and text graphs to int8, for ONNX Runtime on CPUs.

Static, from the ranges that the float32 graphs show on training videos and sentences of the demo's world, so that a
result does not depend on its batch as it would with ranges taken at run time. Activations are uint8, weights int8 per
channel with 7 bits: two products of more bits overflow the 16-bit sums of CPUs without VNNI, and R@1 would depend on
the CPU. The first and last product of the video graph, the heads of both, products of two activations (attention),
norms, means and scores stay float32: of the demo's training sentences 95 % keep their best proposal so, 93 % without.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.demo.agreement import Agreement, LabelledSplit, agreement, draw_split
from mmn_fast.engine import load
from mmn_fast.export.manifest import GRAPHS, TOKENIZER, Manifest, sha256
from mmn_fast.features import pre_clips
from mmn_fast.presets import PRESETS, Preset
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.types import InputError

MAX_RECALL_LOSS = 0.5  # points of R@1
_CALIBRATION_VIDEOS = 16  # of the training split; about 100 sentences
_EVALUATION_VIDEOS = 150  # of the test split: 1,036 sentences, so one of them is 0.1 points
_RECALLS = ("R@1,IoU@0.5", "R@1,IoU@0.7")
"""Recalls that quantisation may not cost more than its limit; the worse counts."""


def check_wish(preset: Preset, what: list[str], raw_features: bool, max_recall_loss: float) -> None:
    """Refuse an int8 export whose R@1 cannot be measured, before any work is done.

    Raises:
        InputError: another world than the demo's, not all graphs, source rows, or no usable limit.
    """
    if not max_recall_loss >= 0:
        raise InputError(f"max_recall_loss: expected points of R@1, 0 or more, got {max_recall_loss!r}")
    width = PRESETS["shapes"].input_size
    if preset.input_size != width:
        raise InputError(
            f"precision: int8 is exported only with its R@1 difference on the demo's videos, whose features have"
            f" {width} values, preset {preset.name!r} takes {preset.input_size}; expected fp32 or fp16"
        )
    if list(GRAPHS) != what or raw_features:
        raise InputError("precision: R@1 of int8 is measured with all graphs on pre-clips; expected --what all alone")


def quantise(directory: Path, manifest: Manifest, max_recall_loss: float = MAX_RECALL_LOSS) -> Manifest:
    """Replace the video and text graphs of a float32 export by int8 ones and measure what that costs.

    Args:
        directory: the export, whose graphs are replaced.
        manifest: its manifest.
        max_recall_loss: points of R@1 (at IoU 0.5 and at 0.7) that it may cost on the demo's test split.

    Returns:
        The manifest of the int8 export; `verification["quantisation"]` says what it was calibrated and measured on,
        R@n, the differences from float32 in points, and how many sentences keep their best proposal.

    Raises:
        InputError: it costs more; the directory is of no use then.
    """
    manifest.write(directory)
    float32 = load(directory, backend="onnx")  # keeps its sessions when the files change
    calibration = draw_split(_CALIBRATION_VIDEOS, split="train")
    for name, operator, inputs in (
        ("video", "Conv", _videos(calibration, manifest.preset)),
        ("text", "MatMul", _sentences(calibration, directory, manifest)),
    ):
        _quantise_graph(directory / manifest.graphs[name], operator, inputs)
    files = {name: sha256(directory / name) for name in manifest.files}
    manifest = dataclasses.replace(manifest, precision="int8", files=files, verification={})
    manifest.write(directory)
    found = agreement(load(directory, backend="onnx"), float32, draw_split(_EVALUATION_VIDEOS))
    points = {name: round(100 * difference, 3) for name, difference in found.recall_difference.items()}
    loss = max(-points[name] for name in _RECALLS)
    if loss > max_recall_loss:
        raise InputError(
            f"precision: int8 costs {loss:.2f} points of R@1 on {found.num_sentences} sentences of the demo's test"
            f" split, more than {max_recall_loss:g}; export fp32 or fp16, or allow it with --max-recall-loss"
        )
    manifest.verification["quantisation"] = _report(found, points, calibration, max_recall_loss)
    return manifest


def _report(found: Agreement, points: dict[str, float], calibration: LabelledSplit, limit: float) -> dict[str, Any]:
    return {
        "method": "static, per channel, QDQ; uint8 activations, int8 weights of 7 bits",
        "calibration": f"{len(calibration.batch)} videos, {calibration.num_sentences} sentences, demo train split",
        "evaluation": f"{found.num_sentences} sentences, demo test split",
        "recall": found.recall,
        "recall_difference_points": points,
        "max_recall_loss_points": limit,
        "top1_agreement": found.top1,
        "max_fused_difference": found.max_fused_difference,
    }


class _Inputs:
    """Calibration inputs, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, items: Iterator[dict[str, np.ndarray]]) -> None:
        self._items = items

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def _videos(split: LabelledSplit, preset: Preset) -> _Inputs:
    size = 1, preset.num_pre_clips, preset.input_size
    return _Inputs({"pre_clips": pre_clips(query.video.features, preset).reshape(size)} for query in split.batch)


def _sentences(split: LabelledSplit, directory: Path, manifest: Manifest) -> _Inputs:
    tokenizer = load_tokenizer(directory / TOKENIZER, manifest.text.max_tokens)
    ids = (tokens for query in split.batch for tokens in tokenizer.encode(query.sentences))
    return _Inputs({"token_ids": one[None], "attention_mask": np.ones_like(one)[None]} for one in ids)


def _quantise_graph(path: Path, operator: str, inputs: _Inputs) -> None:
    """Quantise the nodes of one operator that have weights."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(path)
    weights = {one.name for one in model.graph.initializer}
    chosen = [node.name for node in model.graph.node if node.op_type == operator and weights & set(node.input)]
    logging.getLogger().addFilter(_not_advice)
    try:
        quantize_static(
            model,
            str(path),
            inputs,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
        )
    finally:
        logging.getLogger().removeFilter(_not_advice)


def _not_advice(record: logging.LogRecord) -> bool:
    """Drops advice to prepare a graph, which changes nothing in these."""
    return "pre-processing" not in record.getMessage()
