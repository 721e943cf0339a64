"""Post-training quantisation of an export's video and text graphs to int8, for ONNX Runtime on CPUs.

Quantisation is static: ranges come from the float32 graphs, run on videos and sentences of the model's own world (the
demo's, or annotated videos of the caller). If ranges came from the input at run time, a result would depend on its
batch.
Activations are uint8, weights int8 per channel with 7 bits: with more bits, two products overflow the 16-bit sums of
CPUs without VNNI, and R@1 would depend on the CPU. The first and last product of the video graph, the heads of both
graphs, products of two activations (attention), norms, means and scores stay float32: 95 % of the demo's training
sentences then keep their best proposal, instead of 93 %.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.artifact.manifest import GRAPHS, MAX_RECALL_LOSS, TOKENIZER, Manifest
from mmn_fast.demo.split import draw_split
from mmn_fast.engine import load
from mmn_fast.errors import InputError, named_as
from mmn_fast.evaluation.agreement import Agreement, LabelledSplit, agreement
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.features import open_features, pre_clips
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.matching import refuse_other_features
from mmn_fast.presets import PRESETS, Preset
from mmn_fast.storage.checksums import file_sha256
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.types import Query, Video

_CALIBRATION_VIDEOS = 16  # from the demo's training split; about 100 sentences
_EVALUATION_VIDEOS = 150  # from the demo's test split: 1,036 sentences, so one sentence is 0.1 points
_EVALUATION_SENTENCES = 1000  # from the caller's data, if it has as many
_FEWEST_SENTENCES = 200  # one sentence is then 0.5 points


@dataclass(frozen=True)
class Labelled:
    """Annotated videos of the caller, as `mmn-fast eval` takes them.

    Attributes:
        annotations: see `evaluation.datasets.read_annotations`.
        features: see `features.open_features`.
        durations: durations of the videos, for Charades-STA's text format.
        feature_key: the array to take if a video has several; None takes the preset's.
    """

    annotations: Path
    features: Path
    durations: Path | None = None
    feature_key: str | None = None


@dataclass(frozen=True, eq=False)
class Splits:
    """Data for calibration of ranges, data for measuring R@1, and the names of both in the manifest."""

    calibration: LabelledSplit
    evaluation: LabelledSplit
    names: tuple[str, str]


def check_wish(
    preset: Preset,
    what: list[str],
    raw_features: bool,
    max_recall_loss: float,
    data: Labelled | None,
    contract: FeatureContract | None = None,
) -> Splits:
    """Find the data to calibrate and measure an int8 export, before any work is done.

    Raises:
        InputError: no annotated videos for a world other than the demo's, too few or damaged ones, features of another
            contract than the model's, not all graphs, source rows, or an unusable limit.
    """
    if not max_recall_loss >= 0:
        raise InputError(f"max_recall_loss: expected points of R@1, 0 or more, got {max_recall_loss!r}")
    if list(GRAPHS) != what or raw_features:
        raise InputError(
            "precision: int8 is measured with all graphs on pre-clips; expected --what all, no --raw-features"
        )
    if data is not None:
        return _splits_of(data, preset, contract)
    width = PRESETS["shapes"].input_size
    if preset.input_size != width:
        raise InputError(
            f"precision: int8 is exported only with its R@1 measured; the demo's videos have features of {width}"
            f" values, preset {preset.name!r} takes {preset.input_size}; give --annotations and --features to measure"
            " it on videos of your own, or export fp32 or fp16"
        )
    return demo_splits()


def demo_splits() -> Splits:
    """Splits with videos of the demo's world."""
    return Splits(
        draw_split(_CALIBRATION_VIDEOS, split="train"),
        draw_split(_EVALUATION_VIDEOS),
        ("demo train split", "demo test split"),
    )


def _splits_of(data: Labelled, preset: Preset, contract: FeatureContract | None) -> Splits:
    """Splits of a data set in random order: the first videos for calibration, the next ones for evaluation."""
    samples = read_annotations(data.annotations, preset, durations=data.durations)
    calibration, evaluation = LabelledSplit([], []), LabelledSplit([], [])
    with named_as("path", "features"):
        key = preset.feature_key if data.feature_key is None else data.feature_key
        store = open_features(data.features, key, preset.input_size)
    with store:
        refuse_other_features(contract, store.contract, f"features: {data.features}")
        for number in np.random.default_rng(0).permutation(len(samples)).tolist():
            sample = samples[number]
            if sample.video_id not in store:
                raise InputError(f"features: {data.features} has no video {sample.video_id!r} of {data.annotations}")
            split = evaluation if len(calibration.batch) == _CALIBRATION_VIDEOS else calibration
            video = Video(store[sample.video_id], sample.duration_s, sample.video_id)
            split.batch.append(Query(video, list(sample.sentences)))
            split.moments_s.append(sample.moments_s)
            if evaluation.num_sentences >= _EVALUATION_SENTENCES:
                break
    if evaluation.num_sentences < _FEWEST_SENTENCES:
        raise InputError(
            f"annotations: expected {_FEWEST_SENTENCES} sentences or more beside those of the {_CALIBRATION_VIDEOS}"
            f" videos that int8 is calibrated on, got {evaluation.num_sentences} in {data.annotations}"
        )
    name = data.annotations.name
    return Splits(calibration, evaluation, (name, f"{name}, other videos"))


def quantise(directory: Path, manifest: Manifest, splits: Splits, max_recall_loss: float = MAX_RECALL_LOSS) -> Manifest:
    """Replace the video and text graphs of a float32 export by int8 graphs and measure the loss.

    Args:
        directory: the export; its graphs are replaced.
        manifest: the export's manifest.
        splits: data for calibration and for measuring R@1.
        max_recall_loss: most points of R@1 that int8 may cost, at the worst of the preset's IoUs.

    Returns:
        The manifest of the int8 export; `verification["quantisation"]` has the names of the calibration and test data,
        R@n, the differences from float32 in points, and how many sentences keep their best proposal.

    Raises:
        InputError: int8 costs more; the caller must discard the directory.
    """
    manifest.write(directory)
    float32 = load(directory, backend="onnx")  # keeps its sessions when the files change
    for name, operator, inputs in (
        ("video", "Conv", _videos(splits.calibration, manifest.preset)),
        ("text", "MatMul", _sentences(splits.calibration, directory, manifest)),
    ):
        _quantise_graph(directory / manifest.graphs[name], operator, inputs)
    files = {name: file_sha256(directory / name) for name in manifest.files}
    manifest = dataclasses.replace(manifest, precision="int8", files=files, verification={})
    manifest.write(directory)
    found = agreement(load(directory, backend="onnx"), float32, splits.evaluation)
    points = {name: round(100 * difference, 3) for name, difference in found.recall_difference.items()}
    loss = max(-difference for name, difference in points.items() if name.startswith("R@1,"))
    if loss > max_recall_loss:
        raise InputError(
            f"precision: int8 costs {loss:.2f} points of R@1 on {found.num_sentences} sentences of the"
            f" {splits.names[1]}, more than {max_recall_loss:g}; export fp32 or fp16, or allow it with"
            " --max-recall-loss"
        )
    manifest.verification["quantisation"] = _report(found, points, splits, max_recall_loss)
    return manifest


def _report(found: Agreement, points: dict[str, float], splits: Splits, limit: float) -> dict[str, Any]:
    calibration, (calibrated_on, measured_on) = splits.calibration, splits.names
    return {
        "method": "static, per channel, QDQ; uint8 activations, int8 weights of 7 bits",
        "calibration": f"{len(calibration.batch)} videos, {calibration.num_sentences} sentences, {calibrated_on}",
        "evaluation": f"{found.num_sentences} sentences, {measured_on}",
        "recall": found.recall,
        "recall_difference_points": points,
        "max_recall_loss_points": limit,
        "top1_agreement": found.top1,
        "max_fused_difference": found.max_fused_difference,
    }


class _Inputs:
    """Calibration inputs in the form that ONNX Runtime's quantiser reads."""

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
    """Drop the advice to prepare a graph, because preparation would not change these graphs."""
    return "pre-processing" not in record.getMessage()
