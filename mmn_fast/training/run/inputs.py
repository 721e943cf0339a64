"""Data of a run: the training data, and the function that evaluates a model on the validation data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from mmn_fast.backends import registry
from mmn_fast.backends.base import Settings
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.engine import Engine
from mmn_fast.errors import named_as
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.evaluation.evaluate import evaluate
from mmn_fast.features import FeatureStore, open_features
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import Tokenizer
from mmn_fast.training.data import TrainingData, usable_samples
from mmn_fast.training.run.options import TrainOptions


def training_data(
    options: TrainOptions, preset: Preset, tokenizer: Tokenizer, stack: ExitStack, progress: bool
) -> TrainingData:
    """Open the training data; `stack` closes the features."""
    return TrainingData(
        read_annotations(options.annotations, preset, options.durations, options.strict),
        _open_features(options, preset, options.features, "features", stack),
        preset,
        tokenizer,
        source=str(options.annotations),
        cache_gib=options.cache_gib,
        skip_missing=options.skip_missing,
        strict=options.strict,
        progress=progress,
    )


def validation(
    options: TrainOptions, preset: Preset, tokenizer: Tokenizer, device: torch.device, stack: ExitStack
) -> Callable[[LoadedModel], dict[str, float]] | None:
    """Make the function that computes a model's metrics; None without validation data. `stack` closes the features."""
    if options.val_annotations is None:
        return None
    samples = read_annotations(options.val_annotations, preset, options.durations, options.strict)
    path, argument = options.val_features, "val_features"
    if path is None:
        path, argument = options.features, "features"
    store = _open_features(options, preset, path, argument, stack)
    usable = usable_samples(
        samples,
        store,
        tokenizer,
        str(options.val_annotations),
        argument,
        skip_missing=options.skip_missing,
        strict=options.strict,
    )

    def metrics(model: LoadedModel) -> dict[str, float]:
        backend = registry.backend_class("torch")
        engine = Engine(model, backend(model, Settings(str(device), "fp32")))
        return evaluate(engine, usable, store).metrics

    return metrics


def _open_features(options: TrainOptions, preset: Preset, path: Path, argument: str, stack: ExitStack) -> FeatureStore:
    key = preset.feature_key if options.feature_key is None else options.feature_key
    with named_as("path", argument):
        return stack.enter_context(open_features(path, key, preset.input_size))
